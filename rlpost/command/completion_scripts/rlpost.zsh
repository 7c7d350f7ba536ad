#compdef rlpost
# Completion of rlpost's words in zsh: eval "$(rlpost completion zsh)"
_rlpost() {
    local -a found whole begun
    found=("${(@f)$("${words[1]}" completion words "${(@)words[2,CURRENT]}" 2> /dev/null)}")
    begun=(${(M)found:#*[=:]})
    whole=(${found:#*[=:]})
    if (( ! ${#begun} && ! ${#whole} )); then
        _files
        return
    fi
    (( ${#begun} )) && compadd -S '' -a begun
    (( ${#whole} )) && compadd -a whole
}
compdef _rlpost rlpost
