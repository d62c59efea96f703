//! Chores of the repository: `cargo run -p xtask -- tidy` looks the house over. The tests run it too.

mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("tidy") {
        return report(&tidy::faults(&root()));
    }
    eprintln!("usage: cargo run -p xtask -- tidy");
    ExitCode::from(2)
}

fn report(faults: &[String]) -> ExitCode {
    for fault in faults {
        println!("{fault}");
    }
    println!("tidy: {} faults", faults.len());
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The repository's root: the folder above this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_house_is_tidy() {
        let faults = super::tidy::faults(&super::root());
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
