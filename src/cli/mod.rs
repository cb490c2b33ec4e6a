//! The command line: parse, run, exit code. The only prints of the runtime; a file each subcommand.

mod annotate;
mod answers;
mod args;
mod ask;
mod asked;
mod batch;
mod bench;
mod busy;
mod cache;
mod chat;
mod detect;
mod devices;
mod doctor;
mod examples;
mod imatrix;
mod inspect;
mod keep;
mod manual;
mod mmproj;
mod once;
mod output;
mod pipeline;
mod plan;
mod prompt_cache;
mod quality;
mod room;
mod see;
mod structure;
mod table;
mod tokenize;
mod trace;
#[cfg(feature = "rpc")]
mod worker;

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::ErrorKind as ClapKind;
use clap::{CommandFactory, FromArgMatches};
use qvl::ends;
use qvl::error::{Error, ErrorKind, Result};
use qvl::llama::{LogLevel, set_log};

use args::{Cli, Command};

/// Set by the first Ctrl-C; computations end early then and keep what came.
static STOP: AtomicBool = AtomicBool::new(false);

/// Whether `-v` was given.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches_from(args::with_long_flags(std::env::args_os()));
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    if cli.command.computes() {
        busy::share_cores();
    }
    VERBOSE.store(cli.verbose, Ordering::Relaxed);
    set_log(|level, text| {
        if VERBOSE.load(Ordering::Relaxed) || level == LogLevel::Error && std::env::var_os("QVL_DEBUG").is_some() {
            print_error(text);
        }
    });
    let handler = || {
        if STOP.swap(true, Ordering::Relaxed) {
            ends::exit(ErrorKind::Interrupted.exit_code());
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        return report(&Error::other("cannot handle Ctrl-C").because(error));
    }
    // Before anything else is done: a flag that cannot be followed is told at once.
    if let Some(error) = cli.command.prompt_kernels().and_then(|mode| pipeline::use_prompt_kernels(mode).err()) {
        return report(&error);
    }
    let result = match cli.command {
        Command::Ask(args) => ask::run(&args, cli.quiet),
        Command::Chat(args) => chat::run(args, cli.quiet),
        Command::Detect(args) => detect::run(&args, cli.quiet),
        Command::Batch(args) => batch::run(&args, cli.quiet),
        Command::Imatrix(args) => imatrix::run(&args, cli.quiet),
        Command::Quality(args) => quality::run(&args, cli.quiet),
        Command::Trace(args) => trace::run(&args, cli.quiet),
        Command::Tokenize(args) => tokenize::run_file(&args.model),
        Command::Inspect(args) => return inspect::run(&args).unwrap_or_else(|error| report(&error)),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(args) => bench::run(&args, cli.quiet),
        #[cfg(feature = "rpc")]
        Command::Worker(args) => worker::run(&args, cli.quiet),
        Command::Doctor(args) => doctor::run(&args),
        Command::Cache(command) => cache::run(&command),
        Command::Completions(args) => manual::completions(args.shell),
        Command::Man(args) => manual::man(&args.dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Prints what clap says, shortened to one line when it is an error.
fn report_usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion) {
        // A closed pipe is no reason to complain about help.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ClapKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(ErrorKind::Usage.exit_code());
    }
    let text = error.to_string();
    let message =
        ["\n\nUsage", "\n\nFor more"].iter().fold(text.as_str(), |text, end| text.split(end).next().unwrap_or(text));
    let message = message.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    report(&Error::usage(format!("{message} (see --help)")))
}

fn report(error: &Error) -> ExitCode {
    print_error(&format!("error: {error}\n"));
    ExitCode::from(error.kind().exit_code())
}

/// Writes to stderr; where nobody listens there is nobody to tell (`eprint!` would panic).
fn print_error(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Says something that only matters to who wants to know more (`-v`).
fn print_verbose(text: &str) {
    if VERBOSE.load(Ordering::Relaxed) {
        print_error(text);
    }
}

/// Reads a prompt or a list of ids, in full but not without end.
fn read_text(input: impl Read) -> io::Result<String> {
    const MAX_BYTES: u64 = 64 << 20;
    let mut text = String::new();
    if input.take(MAX_BYTES + 1).read_to_string(&mut text)? as u64 > MAX_BYTES {
        return Err(io::Error::other("it is larger than 64 MiB"));
    }
    Ok(text)
}

/// Writes to stdout at once. A closed pipe ends the process quietly, as other tools do.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ends::exit(0),
        Err(error) => Err(Error::other("cannot write to stdout").because(error)),
        Ok(()) => Ok(()),
    }
}

/// Prints one JSON value on one line.
fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&format!("{value}\n"))
}
