//! Whatever the input, both programs answer with a result or with one `error:` line and a promised exit code: never a
//! panic, an abort, a signal, a hang, or half a file.

#[path = "../it/adapter_files.rs"]
mod adapter_files;
mod adapters;
mod checkpoints;
mod faults;
mod gguf;
#[path = "../support/gptq.rs"]
mod gptq;
mod gptq_files;
mod grammars;
mod headers;
mod kills;
mod measures;
mod mutations;
mod pairs;
mod pictures;
mod prompts;
#[path = "../support/random.rs"]
mod random;
mod support;
#[path = "../support/torch.rs"]
mod torch;
mod torch_files;
mod weights;
