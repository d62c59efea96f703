//! The hidden sub-commands of a box by themselves, as this crate's tests start them.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    args.split_first().and_then(|(word, rest)| ionet_runtime::hidden(word, rest)).unwrap_or_else(|| {
        eprintln!("usage: ionet-box box-init | box-launch | box-ssh | box-files");
        ExitCode::from(2)
    })
}
