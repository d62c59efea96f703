//! The hidden sub-commands of the worker by themselves, as this crate's tests start them.

use std::process::ExitCode;

use ionet_runtime::holder::HelperExe;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((word, rest)) if word == "supervisor" => match HelperExe::current() {
            Ok(helper) => ionet_worker::supervisor::main(rest, helper),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        other => other.and_then(|(word, rest)| ionet_runtime::hidden(word, rest)).unwrap_or_else(|| {
            eprintln!("usage: ionet-lease supervisor --dir DIR, or a sub-command of a box");
            ExitCode::from(2)
        }),
    }
}
