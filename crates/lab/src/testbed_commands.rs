//! The commands of the testbed: up, in, down, soak.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Subcommand};
use ionet_lab::testbed::cloud::Cloud;
use ionet_lab::testbed::fault::{self, Kind as Fault};
use ionet_lab::testbed::file::{EXAMPLE, TestbedFile};
use ionet_lab::testbed::{self, Testbed, host};
use ionet_lab::{LabError, Result, soak};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make machines behind routers, with lines between them, and run the real network on them until Ctrl-C.
    Up {
        /// The file that describes them.
        #[arg(required_unless_present_any = ["example", "check"])]
        file: Option<PathBuf>,
        /// Print a commented file instead.
        #[arg(long)]
        example: bool,
        /// Only say whether such machines can be made here.
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        on: On,
    },
    /// Run a command on a machine of a testbed that is up.
    In {
        /// The testbed's file.
        file: PathBuf,
        /// The machine.
        host: String,
        /// The command, after --.
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Remove whatever is left of a testbed.
    Down {
        /// Its file.
        file: PathBuf,
    },
    /// Orders and faults on a testbed with real processes, for a while; then the books are checked.
    Soak(SoakArgs),
    /// A machine's first process; the testbed starts it.
    #[command(name = host::INIT_WORD, hide = true)]
    HostInit {
        /// The machine.
        name: String,
    },
}

/// What a testbed runs.
#[derive(Args)]
pub(crate) struct On {
    /// The binary; the one beside this by default.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Do without namespaces: every machine is on this one's loopback.
    #[arg(long)]
    loopback: bool,
}

#[derive(Args)]
pub(crate) struct SoakArgs {
    /// The testbed's file; two suppliers behind two kinds of router by default.
    file: Option<PathBuf>,
    /// For how long faults happen.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Of everything that is chosen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these kinds of fault.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Each kind once, in turn, instead of by chance.
    #[arg(long)]
    in_turn: bool,
    /// Print one line of JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Copy all logs into this folder if a promise was broken.
    #[arg(long)]
    logs: Option<PathBuf>,
    #[command(flatten)]
    on: On,
}

/// Whether all was well.
pub(crate) fn run(command: Command) -> Result<bool> {
    match command {
        Command::Up { example: true, .. } => {
            print!("{EXAMPLE}");
            Ok(true)
        }
        Command::Up { check: true, .. } => {
            let missing = testbed::missing();
            println!("{}", missing.as_deref().unwrap_or("testbeds can be made here"));
            Ok(missing.is_none())
        }
        Command::Up { file, on, .. } => up(&file.unwrap_or_default(), &on),
        Command::In { file, host, words } => {
            testbed::enter(&TestbedFile::read(&file)?.name, &host, &words).map(|status| status.success())
        }
        Command::Down { file } => {
            let name = TestbedFile::read(&file)?.name;
            let was_there = testbed::down(&name)?;
            println!("{name}: {}", if was_there { "removed" } else { "nothing was left" });
            Ok(true)
        }
        Command::Soak(args) => run_soak(&args),
        Command::HostInit { .. } => Ok(host::init()),
    }
}

/// Set when somebody wants this to end: Ctrl-C or a polite end from outside.
fn ending() -> Result<Arc<AtomicBool>> {
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(LabError::io("listen for signals"))?;
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
            let _ = ready.send(());
            let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else { return };
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tell.store(true, Ordering::Release);
        });
    });
    let _ = is_ready.recv();
    Ok(told)
}

fn cloud(file: TestbedFile, on: &On, isolated: bool) -> Result<Cloud> {
    let binary = on.binary.clone().map_or_else(beside, Ok)?;
    let binary = binary.canonicalize().map_err(LabError::io(format!("find {}", binary.display())))?;
    Cloud::start(Testbed::up(file, isolated)?, &binary)
}

fn up(path: &Path, on: &On) -> Result<bool> {
    let file = TestbedFile::read(path)?;
    if !on.loopback
        && let Some(why) = testbed::missing()
    {
        return Err(LabError::Broken(format!(
            "machines with addresses of their own cannot be made here: {why}\nhelp: it takes root, iproute2, nftables, \
             util-linux and /dev/net/tun; '--loopback' does without"
        )));
    }
    let ending = ending()?;
    let cloud = cloud(file, on, !on.loopback)?;
    println!("{}\nCtrl-C ends all of it", cloud.directions(&path.display().to_string()));
    while !ending.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(true)
}

fn run_soak(args: &SoakArgs) -> Result<bool> {
    const USUAL: &str = include_str!("../testbeds/soak.toml");
    let file = args.file.as_deref().map_or_else(|| TestbedFile::parse(USUAL), TestbedFile::read)?;
    let missing = if args.on.loopback { Some("as asked for".to_owned()) } else { testbed::missing() };
    if let Some(why) = &missing {
        eprintln!("soak: NO NAMESPACES AND NO ROUTERS, everything on this machine's loopback: {why}");
    }
    let stop = ending()?;
    let cloud = cloud(file, &args.on, missing.is_none())?;
    let logs = cloud.testbed.log("server");
    let plan = soak::Plan {
        duration: Duration::from_secs_f64((args.minutes * 60.0).clamp(0.0, 86_400.0)),
        seed: args.seed,
        kinds: if args.faults.is_empty() { fault::ALL.to_vec() } else { args.faults.clone() },
        in_turn: args.in_turn,
    };
    let kept = args.logs.clone();
    let keep = |broken: bool| match (&kept, logs.parent()) {
        (Some(to), Some(from)) if broken => copy_files(from, to),
        _ => Ok(()),
    };
    let mut summary = soak::run(cloud, &plan, &stop, &|text| eprintln!("{text}"), &keep)?;
    summary.network = missing.map_or("namespaces".into(), |why| format!("the loopback ({why})"));
    println!("{}", if args.json { summary.json() } else { summary.text() });
    Ok(summary.broken.is_empty())
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    let copy = || -> std::io::Result<()> {
        std::fs::create_dir_all(to)?;
        for file in std::fs::read_dir(from)? {
            let file = file?;
            std::fs::copy(file.path(), to.join(file.file_name()))?;
        }
        Ok(())
    };
    copy().map_err(LabError::io(format!("copy the logs to {}", to.display())))
}

/// The product's binary beside this one.
pub(crate) fn beside() -> Result<PathBuf> {
    let exe = std::env::current_exe().map_err(LabError::io("find the binary"))?;
    let binary = exe.with_file_name("ionet");
    if binary.exists() {
        return Ok(binary);
    }
    let place = binary.display();
    Err(LabError::Broken(format!(
        "{place} is not there; build it with 'cargo build -p ionet-cli' or say --binary"
    )))
}
