//! The fuzz targets as libFuzzer runs them. The converter is a program, so the modules that read checkpoints are taken in
//! here under the names that they have there.

// Only the readers are of use here.
#![allow(dead_code, missing_docs, unused_imports)]

#[path = "../../convert/args.rs"]
mod args;
#[path = "../../src/cli/batch/input.rs"]
mod batch_input;
#[path = "../../convert/checkpoint/mod.rs"]
mod checkpoint;
#[path = "../../convert/config.rs"]
mod config;
#[path = "../targets/mod.rs"]
pub mod fuzz;
#[path = "../../convert/gptq/mod.rs"]
mod gptq;
#[path = "../../convert/json.rs"]
mod json;
#[path = "../../convert/lora/mod.rs"]
mod lora;
#[path = "../../convert/mapping.rs"]
mod mapping;
#[path = "../../convert/naming.rs"]
mod naming;
#[path = "../../convert/plan.rs"]
mod plan;
#[path = "../../convert/recipe.rs"]
mod recipe;
#[path = "../../convert/types.rs"]
mod types;
#[path = "../../convert/vocab.rs"]
mod vocab;

/// Lets panics of picture decoders be what they are in the program, errors: libFuzzer would end at them.
pub fn contain() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !qvl::image::is_contained() {
            hook(panic);
        }
    }));
}
