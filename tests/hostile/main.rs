//! Whatever the input, both programs answer with a result or with one `error:` line and a promised exit code: never a
//! panic, an abort, a signal, a hang, or half a file.

mod checkpoints;
mod gguf;
mod grammars;
mod headers;
mod measures;
mod mutations;
mod pairs;
mod pictures;
mod prompts;
mod support;
mod weights;
