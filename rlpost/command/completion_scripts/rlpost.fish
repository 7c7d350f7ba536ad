# Completion of rlpost's words in fish: rlpost completion fish | source
function __rlpost_words
    set -l typed (commandline -opc)
    $typed[1] completion words $typed[2..-1] (commandline -ct) 2> /dev/null
end
complete -c rlpost -a '(__rlpost_words)'
