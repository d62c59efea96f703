//! `ionet`: server, relay, worker and client in one binary. Words in, tables or JSON out.
//!
//! Always holds: no command ends the process by itself; the exit status is given here, from the error's kind.

mod args;
mod commands;
mod context;
mod error;
mod log;
mod machine;
mod out;
mod process;
mod ray;
mod tunnel;
mod units;
mod words;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use context::Context;
use error::{CliError, Result};

fn main() -> ExitCode {
    if let Some(status) = hidden() {
        return status;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(misunderstood(&error)),
    };
    let json = cli.global.json;
    match run(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => ExitCode::from(show(&error, json)),
    }
}

/// The processes of a lease, which are this same binary: started by the worker, never by people. They come before
/// everything else, as they must stay small.
fn hidden() -> Option<ExitCode> {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let (word, rest) = words.split_first()?;
    Some(match word.as_str() {
        "supervisor" => match ionet_worker::HelperExe::current() {
            Ok(helper) => ionet_worker::supervisor::main(rest, helper),
            Err(error) => {
                eprintln!("supervisor: {error}");
                ExitCode::FAILURE
            }
        },
        word => return ionet_worker::hidden(word, rest),
    })
}

fn run(cli: Cli) -> Result<u8> {
    process::allow_many_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(error::io("start"))?;
    let done = runtime.block_on(dispatch(cli));
    // A thread that waits for standard input would wait for ever.
    runtime.shutdown_background();
    done
}

async fn dispatch(cli: Cli) -> Result<u8> {
    let context = Context::new(&cli.global)?;
    let done = match cli.command {
        Command::Login(args) => commands::account::login(&context, &args).await,
        Command::Wallet(args) => commands::account::wallet(&context, &args).await,
        Command::Keys(command) => commands::account::keys(&context, &command).await,
        Command::Ledger(args) => commands::account::ledger(&context, &args).await,
        Command::Activity(args) => commands::account::activity(&context, &args).await,
        Command::Devices(args) => commands::devices::devices(&context, &args).await,
        Command::Quote(args) => commands::quote::quote(&context, &args).await,
        Command::Prices(args) => commands::prices::prices(&context, &args).await,
        Command::Explain { id } => commands::explain::explain(&context, id).await,
        Command::Country { country } => commands::terms::country(&context, country).await,
        Command::Operator(command) => commands::terms::operator(&context, &command).await,
        Command::Cluster(command) => return commands::cluster::cluster(&context, &command).await,
        Command::Expose(args) => commands::expose::expose(&context, &args).await,
        Command::Tunnel(args) => return commands::tunnel::tunnel(&context, &args).await,
        Command::Ssh(args) => return commands::ssh::ssh(&context, &args).await,
        Command::SshProxy { cluster, member } => {
            return commands::ssh::proxy(&context, cluster, member).await;
        }
        Command::Cp(args) => commands::cp::cp(&context, &args).await,
        Command::Job(command) => commands::job::job(&context, &command).await,
        Command::Journal(command) => commands::journal::journal(&context, &command).await,
        Command::Relay(args) => commands::relay::relay(&context, &args).await,
        Command::Up(args) => commands::up::up(&context, &args).await,
        Command::Quickstart(args) => Box::pin(commands::quickstart::quickstart(&context, &args)).await,
        Command::Server(args) => commands::server::server(&context, &args).await,
        Command::Worker(command) => return commands::worker::worker(&context, &command).await,
        Command::Support(args) => commands::support::support(&context, &args).await,
        Command::Completions { shell } => {
            completions(shell);
            Ok(())
        }
    };
    done.map(|()| 0)
}

fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ionet", &mut script);
    let _ = std::io::Write::write_all(&mut std::io::stdout(), &script);
}

/// Shows an error where it belongs and answers the exit status.
fn show(error: &CliError, json: bool) -> u8 {
    if json {
        out::Out { json }.value(&error.json());
    } else {
        eprintln!("{}", error.text());
    }
    error.kind.exit_status()
}

/// Words that clap did not understand, or a wish for help or the version.
fn misunderstood(error: &clap::Error) -> u8 {
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    let json = std::env::args().take_while(|word| word != "--").any(|word| word == "--json");
    if json {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        return show(&CliError::usage(message).help("'ionet help' lists the commands"), json);
    }
    let _ = error.print();
    error::Kind::Usage.exit_status()
}
