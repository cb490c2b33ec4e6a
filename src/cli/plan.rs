//! `qvl plan`: what a question will take of the memory, from the files' headers.

use std::fmt::Write;

use qvl::error::{Error, Result};
use qvl::memory::{Kind, Phase, Plan, human_bytes};
use qvl::session::TextFile;
use serde_json::{Value, json};

use super::args::PlanArgs;
use super::devices::Placed;
use super::mmproj::Mmproj;
use super::room::{self, Fitted};
use super::{devices, pipeline, print, print_json};

/// Positions of a picture beside its rows: its name, its tags, the line's end.
const N_AROUND_PICTURE: usize = 8;

/// Runs it. Errors (kind memory): it would not fit; the plan is printed all the same.
pub fn run(args: &PlanArgs) -> Result<()> {
    let text = TextFile::open(&args.model.model)?.adapted(&args.model.lora)?;
    let h = text.hparams();
    let n_pictures = usize::from(args.pictures);
    let n_prompt = args.prompt_tokens as usize + n_pictures * (h.n_queries + N_AROUND_PICTURE);
    let n_predict = args.predict.unwrap_or(h.max_new_tokens);
    let vision = match n_pictures {
        0 => None,
        _ => Some(room::vision_phase(&Mmproj::open(&args.model, &text)?, &args.context)?),
    };
    let wanted = pipeline::wanted_settings(&text, &args.context, (n_prompt, n_predict), n_prompt)?;
    let wanted = wanted.with_draft(pipeline::draft(&text, &args.context, args.draft.draft)?);
    let fitted = room::fit(&text, &args.context, wanted);
    let (fitted, error) = match fitted {
        Ok(fitted) => (fitted, None),
        Err(error) => (Fitted::whole(wanted), Some(error)),
    };
    let settings = fitted.settings;
    if n_prompt > settings.n_ctx {
        return Err(qvl::session::too_long(n_prompt, settings.n_ctx));
    }
    let phases = vision.into_iter().chain([room::fitted_phase(&text, &args.context, &fitted)]).collect();
    let plan = Plan { phases };
    let limit = room::limit_bytes(&args.context);
    let devices = devices::chosen(&args.context)?;
    let placed = devices.place(&text, &args.context, &settings);
    let fits = limit.is_none_or(|limit| plan.peak_bytes() <= limit);
    if args.json {
        print_json(&json!({
            "phases": plan.phases.iter().map(phase_json).collect::<Vec<_>>(),
            "peak_bytes": plan.peak_bytes(),
            "kept_bytes": plan.kept_bytes(),
            "limit_bytes": limit,
            "fits": fits,
            "prompt_tokens": n_prompt,
            "layers": text.layers().len(),
            "layers_kept": fitted.n_kept.unwrap_or(text.layers().len()),
            "layers_placed": placed_json(&placed),
            "n_ctx": settings.n_ctx,
            "n_batch": settings.n_batch,
            "cache_type_k": settings.type_k.name(),
            "cache_type_v": settings.type_v.name(),
        }))?;
    } else {
        let kv = format!("{}/{}", settings.type_k, settings.type_v);
        let head = format!(
            "{}: {n_pictures} picture{} and {} tokens of text in {n_prompt} positions, {n_predict} to answer; \
             context {}, KV cache {kv}\n\n",
            text.title(),
            if n_pictures == 1 { "" } else { "s" },
            args.prompt_tokens,
            settings.n_ctx
        );
        let notes = [fitted.note.clone(), devices.note(&text, &args.context, &placed)];
        let notes = notes.into_iter().flatten().map(|note| format!("{note}\n"));
        print(&(head + &table(&plan, limit) + &placed_text(&placed) + &notes.collect::<String>()))?;
    }
    if let Some(error) = error {
        return Err(error);
    }
    match limit {
        Some(limit) if !fits => {
            let (needed, limit) = (human_bytes(plan.peak_bytes()), human_bytes(limit));
            let message = format!("a picture needs {needed}, {limit} are there; use an mmproj in fewer bits");
            Err(Error::memory(message))
        }
        _ => Ok(()),
    }
}

/// `layers   33 on CUDA0`: the output matrix counts as one.
fn placed_text(placed: &[Placed]) -> String {
    let parts: Vec<_> = placed.iter().map(|p| format!("{} on {}", p.n_layers, p.device.name())).collect();
    if parts.is_empty() { String::new() } else { format!("layers   {}\n", parts.join(", ")) }
}

fn placed_json(placed: &[Placed]) -> Value {
    let one = |p: &Placed| json!({"device": p.device.name(), "layers": p.n_layers, "bytes": p.bytes});
    placed.iter().map(one).collect()
}

fn phase_json(phase: &Phase) -> Value {
    let items = phase.items.iter().map(|item| {
        let (is_mapped, is_device) = (item.kind == Kind::Mapped, item.kind == Kind::Device);
        json!({"name": item.name, "bytes": item.bytes, "mapped": is_mapped, "device": is_device})
    });
    json!({"name": phase.name, "items": items.collect::<Vec<_>>(), "bytes": phase.bytes()})
}

/// For people.
fn table(plan: &Plan, limit: Option<u64>) -> String {
    let mut out = String::new();
    let mut row = |first: &str, second: &str, bytes: u64, note: &str| {
        let line = format!("{first:<8}{second:<18}{:>10}  {note}", human_bytes(bytes));
        let _ = writeln!(out, "{}", line.trim_end());
    };
    for phase in &plan.phases {
        let mut name = phase.name;
        for item in phase.items.iter().filter(|item| item.bytes > 0) {
            let note = match item.kind {
                Kind::Mapped => "mapped from the file",
                Kind::Private => "",
                Kind::Device => "of its own memory",
            };
            row(name, &item.name, item.bytes, note);
            name = "";
        }
        row("", "together", phase.bytes(), "");
    }
    row("peak", "", plan.peak_bytes(), "");
    if let Some(limit) = limit {
        row("there is", "", limit, if plan.peak_bytes() <= limit { "it fits" } else { "it does not fit" });
    }
    out
}
