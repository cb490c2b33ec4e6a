# For other scripts: converts the demo model and asks it, and ends with exit code 1 where the answer is not the README's.
#
#   answers EMULATOR PROGRAMS KERNELS...

answers() {
    local emulator=$1 programs=$2 kernels answer out
    # Set by qvl otherwise, which starts itself again for it: the emulator would not be there the second time.
    export GOMP_SPINCOUNT=1000
    shift 2
    out=$(mktemp -d)
    # The emulator is a command with arguments.
    $emulator "$programs/qvl-convert" models/qvl-tiny -q -o "$out" >/dev/null
    for kernels in "$@"; do
        answer=$($emulator "$programs/qvl" ask -q -t 2 --no-cache --vision-kernels "$kernels" --temp 0 \
            -m "$out/qvl-tiny-Q4_K_M.gguf" -i models/qvl-tiny/demo/shapes.png "Describe the picture.")
        if [ "$answer" != "A purple star, a green square, the word WATER and a blue circle." ]; then
            echo "error: with kernels $kernels it says: $answer" >&2
            return 1
        fi
        echo "kernels $kernels: $answer"
    done
    rm -r "$out"
}
