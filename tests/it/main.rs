//! The two programs at work: every test here runs the real binaries on files and looks only at what comes out.
//!
//! Models are converted once each into cargo's temporary directory; nothing here needs a network or a real checkpoint.

/// Running a program and reading what it said.
mod programs;

/// Checkpoints of this repository, converted once a type.
mod models;

/// Values of safetensors files and how far they are apart.
mod tensors;

/// `qvl trace` against the numbers of this repository's own reference, on `models/qvl-random`.
mod goldens_own;

/// `qvl trace` and `qvl tokenize` against the published code's numbers, where they are at hand.
mod goldens_shared;

/// `qvl ask`: text and JSON, sampling, prompts from everywhere, limits.
mod ask;

/// `--draft`: answers come faster, and are the same.
mod drafts;

/// `qvl ask --grammar`, `--json-schema` and `--logprobs`.
mod structured;

/// Grammars as this crate follows them, against llama.cpp's own.
mod grammars;

/// Pictures: they matter, they are turned upright, and none is imagined.
mod pictures;

/// Pictures as they come: stdin, `data:` and `file:` addresses, patterns, every kind of file.
mod sources;

/// Pictures from the network, and no other network access.
#[cfg(feature = "http")]
mod addresses;

/// The cache of embeddings: warm is as cold, and nothing that happens to its files is more than a miss.
mod cache;

/// `--cache-prompt`: warm is as cold, and nothing that happens to its files is more than a miss.
mod prompt_cache;

/// Chance that can be repeated.
#[path = "../support/random.rs"]
mod random;

/// What must hold of anything: files, texts and boxes made at random.
mod properties;

/// What stays with the user: files, prompts, no network.
#[cfg(target_os = "linux")]
mod privacy;

/// A disk that is full.
#[cfg(target_os = "linux")]
mod full_disk;

/// `qvl ask --annotate`: the picture that is written.
mod annotate;

/// What half precision, quantised caches, fused attention and threads cost in accuracy.
mod precision;

/// Kernels of the vision tower, ours against ggml's.
mod kernels;

/// Rows of weights times one column, ours against ggml's.
#[cfg(text_kernels)]
mod rows;

/// The text file in stock llama.cpp.
mod stock;

/// The text file against llama.cpp's own converter.
mod llama_converter;

/// Ctrl-C keeps what came.
#[cfg(unix)]
mod interrupt;

/// A busy machine.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod busy;

/// `qvl-convert`: the plan is what is written, and a failure leaves nothing.
mod convert;

/// Files of `torch.save`, written for tests.
#[path = "../support/torch.rs"]
mod torch;

/// Checkpoints as people have them: `.bin` files and shards of PyTorch.
mod checkpoints;

/// Checkpoints of GPTQ, packed for tests.
#[path = "../support/gptq.rs"]
mod gptq_files;

/// Checkpoints of GPTQ: what is packed stays what it is.
mod gptq;
/// `qvl-convert MODEL.gguf`: a pair as the source of another one.
mod requantise;

/// A language model in several files.
mod split;

/// LoRA adapters as PEFT saves them, made up.
mod adapter_files;

/// LoRA: merged by `qvl-convert --lora`, applied by `qvl --lora`.
mod lora;

/// `qvl plan`, and what is done about memory before anything is loaded.
mod memory;

/// `--session FILE`: a conversation that goes on in another process.
mod kept;

/// `qvl chat` from a pipe: turns, commands, files.
mod chat;

/// `qvl chat` in a terminal: the editor, its keys, and what only a terminal is shown.
#[cfg(target_os = "linux")]
mod terminal;

/// `models/qvl-tiny` sees what is in pictures that it was never trained on, and still does in 4 bits.
mod sees;

/// Every TYPE: its blocks are ggml's own and its file answers.
mod types;

/// `qvl batch`: many at a time, as one at a time, and again after any death.
mod batch;

/// Sessions of the library: nothing is read twice, and together is as alone.
mod sessions;

/// Examples for the next two.
mod examples;

/// `qvl imatrix` and `qvl-convert --imatrix`: what is summed is what is read, and it makes better files.
mod imatrix;

/// `qvl quality`: what quantising cost.
mod quality;

/// `qvl tokenize`: a line for a line.
mod tokenize;

/// `qvl inspect`: what is in a file, and whether it is sound.
mod inspect;

/// `qvl inspect --diff`: two files held against each other.
mod differences;

/// `qvl detect`: regions as data.
mod detect;

/// Parts of pictures in questions: `--region`, `/region`, and a batch's `region`.
mod regions;

/// Layers and pictures on other devices: workers on this machine, and what the build has.
#[cfg(feature = "rpc")]
mod devices;

/// `qvl bench`: numbers that can be true, and two results held against each other.
mod bench;

/// Memory of one process over many answers.
#[cfg(target_os = "linux")]
mod steady;

/// A conversation of fifty turns.
#[cfg(target_os = "linux")]
mod turns;

/// `qvl doctor`, completions and man pages.
mod manual;
