"""GeneralPoints: combine playing cards with + - * / to reach a target (arXiv 2501.17161, section 5.1)."""
