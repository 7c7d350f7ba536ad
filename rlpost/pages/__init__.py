"""What people look at: the console, pages and their pictures."""
