//! The hidden sub-commands of the worker by themselves, as this crate's tests start them.

use std::process::ExitCode;

use ionet_runtime::holder::HelperExe;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((word, rest)) if word == "box-init" => ionet_runtime::netns::main(rest),
        Some((word, rest)) if word == "box-launch" => ionet_runtime::launch::main(rest),
        Some((word, rest)) if word == "supervisor" => match HelperExe::current() {
            Ok(helper) => ionet_worker::supervisor::main(rest, helper),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: ionet-lease box-init | box-launch | supervisor --dir DIR");
            ExitCode::from(2)
        }
    }
}
