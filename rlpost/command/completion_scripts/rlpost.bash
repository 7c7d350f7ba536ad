# Completion of rlpost's words in bash: eval "$(rlpost completion bash)"
_rlpost() {
    local line="${COMP_LINE:0:COMP_POINT}" current cut="" word
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    # bash breaks words at = and : too, and replaces only what follows the last of them.
    [[ $COMP_WORDBREAKS == *=* ]] && cut="${current%"${current##*[=:]}"}"
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("${word#"$cut"}")
        [[ $word == *[=:] ]] && compopt -o nospace 2> /dev/null
    done < <("${words[0]}" completion words "${words[@]:1}" 2> /dev/null)
}
complete -o default -F _rlpost rlpost
