//! The hidden sub-commands of the worker by themselves, as this crate's tests start them.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((word, rest)) if word == "box-init" => ionet_runtime::netns::main(rest),
        Some((word, rest)) if word == "box-launch" => ionet_runtime::launch::main(rest),
        _ => {
            eprintln!("usage: ionet-lease box-init | box-launch");
            ExitCode::from(2)
        }
    }
}
