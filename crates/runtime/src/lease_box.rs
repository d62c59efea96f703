//! One lease's box from start to wipe, as the lease's own process drives it.
//!
//! Always holds: `poll` never blocks; the devices are handed out before anything of the customer runs; when
//! this value or its process goes, everything in the box goes; `remove` looks afterwards whether that is
//! true and says so in the receipt. Not here: packets, paid time, reports to the agent.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::{
    bwrap::{self, BoxView, ENVIRONMENT, HOME},
    door::Door,
    engine::{Program, Running, command, ray},
    environment::{self, Environment, Stop, Wanted},
    error::{During, Error, Result},
    holder::{Connector, Devices, HelperExe, Holder, RunId},
    iface,
    limits::{BoxGroup, Enforcement, Hierarchy},
    netns::Setup,
    sandbox::{BoxReport, BoxSpec, Engine, Phase, Timeline, WipeReceipt},
    wipe,
};

/// Where a box is to live on the host.
#[derive(Clone, Debug)]
pub struct BoxConfig {
    /// What to run.
    pub spec: BoxSpec,
    /// The lease's own folder; made if absent, wiped at the end.
    pub lease_dir: PathBuf,
    /// The worker's folder of prepared environments.
    pub environments_dir: PathBuf,
    /// The executable with the helper's sub-commands.
    pub helper: HelperExe,
    /// The TUN device, `/dev/net/tun` unless a test makes its own.
    pub tun_device: PathBuf,
    /// Where limits are enforced.
    pub hierarchy: Hierarchy,
    /// Whom the box's programs ask for names; whoever holds the device for what leaves the cluster answers there.
    pub resolver: Ipv4Addr,
    /// The MTU of that device in bytes.
    pub out_mtu: u32,
}

/// The IPv6 address that the traffic out of the cluster of the member with this address comes from, in its box.
pub fn out_v6(ip: Ipv4Addr) -> Ipv6Addr {
    iface::out_v6(ip)
}

/// The kernel's TUN device.
pub const TUN_DEVICE: &str = "/dev/net/tun";
/// Boxes of a root worker run as users from here on, one each.
const FIRST_BOX_UID: u32 = 1_879_048_192;
const NOBODY: u32 = 65534;
/// Logs of a box: two files of this size.
const LOG_BYTES: u64 = 4 << 20;
/// Lines of progress that wait to be read; a program that says more waits.
const LINES: usize = 256;
/// Killed processes are gone in milliseconds, unless the kernel is in trouble.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const DISK_CHECK_EVERY: Duration = Duration::from_secs(5);

/// A box that is being prepared, is running, or has ended.
pub struct LeaseBox {
    config: BoxConfig,
    view: BoxView,
    holder: Holder,
    group: BoxGroup,
    started: Instant,
    timeline: Timeline,
    stage: Stage,
    ready_ms: Option<u64>,
    disk: Receiver<u64>,
    /// Dropping it ends the disk watch.
    disk_stop: Sender<()>,
}

enum Stage {
    /// Dropping it ends the preparation with all that it started.
    Preparing {
        news: Receiver<Preparation>,
        progress: u8,
        detail: String,
        _wanted: Wanted,
    },
    Running {
        run: RunId,
        engine: Running,
        lines: Receiver<String>,
    },
    Broken {
        code: String,
        message: String,
    },
}

enum Preparation {
    Step(u8, String),
    Done(Result<PathBuf>),
}

impl LeaseBox {
    /// Makes the box with its namespaces and devices and begins to prepare what its engine needs. Gives the
    /// devices' descriptors.
    pub fn start(config: BoxConfig, now: Instant) -> Result<(Self, Devices)> {
        config.spec.check()?;
        let mut view = view_of(&config)?;
        view.make_files(&format!("{} {}\n", config.spec.ip, view.hostname), config.resolver)?;
        write_files(&config, &mut view)?;
        let uid = give_folders(&config.lease_dir)?;
        let group = BoxGroup::create(&config.hierarchy, &config.spec.lease, &config.spec.limits)?;
        match hold(&config, &view, &group, uid) {
            Ok((holder, devices)) => Ok((Self::held(config, view, group, holder, now)?, devices)),
            Err(error) => {
                // The helper is gone by now; a group that is still busy is removed by `reap`.
                group.remove();
                Err(error)
            }
        }
    }

    fn held(config: BoxConfig, view: BoxView, group: BoxGroup, holder: Holder, now: Instant) -> Result<Self> {
        let (disk_stop, disk) = watch_disk(&config.lease_dir)?;
        let timeline = Timeline { boxes_ms: Some(ms_since(now, Instant::now())), ..Timeline::default() };
        let stage = begin(&config)?;
        Ok(Self {
            config,
            view,
            holder,
            group,
            started: now,
            timeline,
            stage,
            ready_ms: None,
            disk,
            disk_stop,
        })
    }

    /// Moves on and says where the box is. Call it a few times a second.
    pub fn poll(&mut self, now: Instant) -> BoxReport {
        let now_ms = ms_since(self.started, now);
        self.take_preparation(now_ms);
        self.take_lines(now_ms);
        self.check_disk();
        let phase = self.phase();
        if phase == Phase::Ready {
            self.ready_ms.get_or_insert(now_ms);
        }
        BoxReport {
            lease: self.config.spec.lease.clone(),
            phase,
            timeline: self.timeline(),
            enforcement: self.group.enforcement().clone(),
            started_ms: 0,
            ready_ms: self.ready_ms,
        }
    }

    /// Ends the engine and starts it anew in the same box: same namespaces, TUN and files. Waits a moment
    /// for the end. A box that has broken cannot do it; one that is still preparing need not.
    pub fn restart_engine(&mut self, now: Instant) -> Result<()> {
        let run = match &self.stage {
            Stage::Preparing { .. } => return Ok(()),
            Stage::Broken { message, .. } => return Err(Error::Helper { message: message.clone() }),
            Stage::Running { run, .. } => *run,
        };
        if self.holder.exit_code(run).is_none() {
            self.holder.kill(run)?;
        }
        // All of them, for the last one to end may still hold a port.
        let helper = i32::try_from(self.holder.pid()).unwrap_or(0);
        let deadline = Instant::now() + KILL_TIMEOUT;
        while residents(&self.config.lease_dir, &self.group).iter().any(|pid| *pid != helper) {
            if Instant::now() > deadline {
                return Err(Error::Helper { message: "the engine's processes do not end".into() });
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.stage = self.launch(ms_since(self.started, now))?;
        Ok(())
    }

    /// The supervisor says that packets flow.
    pub fn overlay_is_up(&mut self, now: Instant) {
        self.timeline.overlay_ms.get_or_insert(ms_since(self.started, now));
    }

    /// Reaches services in the box, for tunnels.
    pub fn connector(&self) -> Connector {
        self.holder.connector()
    }

    /// The member's address in the overlay.
    pub fn ip(&self) -> Ipv4Addr {
        self.config.spec.ip
    }

    /// How the limits are enforced.
    pub fn enforcement(&self) -> &Enforcement {
        self.group.enforcement()
    }

    /// Times that the kernel killed a process of the box for lack of memory.
    pub fn memory_kills(&self) -> u64 {
        self.group.memory_kills()
    }

    /// Why plain `ray start` was used although the fast start was asked for.
    pub fn fallback(&self) -> Option<&str> {
        match &self.stage {
            Stage::Running { engine: Running::Ray(run), .. } => run.fallback(),
            _ => None,
        }
    }

    /// The last `bytes` of the box's output.
    pub fn log_tail(&self, bytes: usize) -> String {
        log_tail(&self.config.lease_dir, bytes)
    }

    /// Ends everything in the box and wipes it. What failed here can be tried again with [`reap`].
    pub fn remove(self) -> Result<WipeReceipt> {
        let Self { config, holder, group, disk, disk_stop, stage, .. } = self;
        drop((disk, disk_stop, stage));
        let helper = i32::try_from(holder.pid()).unwrap_or(0);
        let mut inside = residents(&config.lease_dir, &group);
        // The helper itself is no process of the customer.
        inside.remove(&helper);
        holder.stop()?;
        finish(&config.spec.lease, &config.lease_dir, &group, inside.len() as u64)
    }

    fn take_preparation(&mut self, now_ms: u64) {
        let mut done = None;
        if let Stage::Preparing { news, progress, detail, .. } = &mut self.stage {
            for step in news.try_iter() {
                match step {
                    Preparation::Step(percent, text) => (*progress, *detail) = (percent, text),
                    Preparation::Done(result) => done = Some(result),
                }
            }
        }
        if let Some(result) = done {
            self.stage = match result.and_then(|_| self.launch(now_ms)) {
                Ok(stage) => stage,
                Err(error) => Stage::Broken { code: error.code().into(), message: error.full_message() },
            };
        }
    }

    /// Starts the engine's program in the box.
    fn launch(&self, now_ms: u64) -> Result<Stage> {
        let program = program_of(&self.config.spec);
        let mut view = self.view.clone();
        view.variables.extend(program.variables.clone());
        let (door, launchers_end) = Door::new(view.own())?;
        let (argv, extras) = view.command(&program.argv, launchers_end)?;
        let extras: Vec<_> = extras.iter().map(|fd| fd.as_fd()).collect();
        let null = File::open("/dev/null").during("open /dev/null")?;
        let (log_end, log_start) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during("make a pipe")?;
        let (lines_end, lines_start) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during("make a pipe")?;
        let stdout = if program.reports_progress { &lines_start } else { &log_start };
        let run = self.holder.run(argv, [null.as_fd(), stdout.as_fd(), log_start.as_fd()], &extras)?;
        self.holder.set_door(door);
        spawn_named("box-log", {
            let folder = self.config.lease_dir.join("log");
            move || keep_log(File::from(log_end), &folder)
        })?;
        let (tell, lines) = mpsc::sync_channel(LINES);
        spawn_named("box-lines", move || read_lines(File::from(lines_end), &tell))?;
        let engine = match &self.config.spec.engine {
            Engine::Command { .. } => Running::Command(command::CommandRun::started(now_ms)),
            Engine::Ray { role, .. } => Running::Ray(ray::RayRun::new(*role)),
        };
        Ok(Stage::Running { run, engine, lines })
    }

    fn take_lines(&mut self, now_ms: u64) {
        let Stage::Running { run, engine, lines } = &mut self.stage else { return };
        for line in lines.try_iter().take(LINES) {
            engine.line(&line, now_ms);
        }
        if let Some(code) = self.holder.exit_code(*run) {
            engine.exited(code);
        } else if !self.holder.is_alive() {
            let message = "the process that holds the box ended; the box is gone".to_owned();
            self.stage = Stage::Broken { code: "box_lost".into(), message };
        }
    }

    fn check_disk(&mut self) {
        let limit = self.config.spec.limits.disk_bytes;
        let Some(used) = self.disk.try_iter().last().filter(|used| *used > limit) else { return };
        if let Stage::Running { run, .. } = self.stage {
            let _ = self.holder.kill(run);
        }
        let message = format!("the box keeps {used} bytes on disk, the lease allows {limit}; rent more disk");
        self.stage = Stage::Broken { code: "disk_limit_exceeded".into(), message };
    }

    fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Preparing { progress, detail, .. } => {
                Phase::Preparing { progress: *progress, detail: detail.clone() }
            }
            Stage::Running { engine, .. } => engine.state().phase,
            Stage::Broken { code, message } => Phase::Failed { code: code.clone(), message: message.clone() },
        }
    }

    fn timeline(&self) -> Timeline {
        let Timeline { boxes_ms, overlay_ms, .. } = self.timeline;
        match &self.stage {
            Stage::Running { engine, .. } => Timeline { boxes_ms, overlay_ms, ..engine.state().timeline },
            _ => self.timeline.clone(),
        }
    }
}

/// Ends and wipes what a lease left whose own process is gone. Safe to repeat.
pub fn reap(lease: &str, lease_dir: &Path, hierarchy: &Hierarchy) -> Result<WipeReceipt> {
    let group = BoxGroup::existing(hierarchy, lease);
    let left = residents(lease_dir, &group).len() as u64;
    finish(lease, lease_dir, &group, left)
}

/// Processes of the box: those in its control group and those that have its folder mounted.
fn residents(lease_dir: &Path, group: &BoxGroup) -> BTreeSet<i32> {
    let mut pids: BTreeSet<i32> = group.pids().into_iter().collect();
    let Some(name) = lease_dir.file_name() else { return pids };
    let mounted = format!("/{}/work ", name.to_string_lossy());
    let Ok(processes) = fs::read_dir("/proc") else { return pids };
    for pid in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if mounts.contains(&mounted) {
            pids.insert(pid);
        }
    }
    pids
}

/// The last `bytes` of the output of the box in `lease_dir`.
pub fn log_tail(lease_dir: &Path, bytes: usize) -> String {
    let read = |name: &str| fs::read(lease_dir.join("log").join(name)).unwrap_or_default();
    let mut all = read("output.log.1");
    all.extend(read("output.log"));
    String::from_utf8_lossy(&all[all.len().saturating_sub(bytes)..]).into_owned()
}

/// Kills what belongs to the box until nothing does, then wipes.
fn finish(lease: &str, lease_dir: &Path, group: &BoxGroup, left: u64) -> Result<WipeReceipt> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    let mut inside = residents(lease_dir, group);
    while !inside.is_empty() && Instant::now() < deadline {
        for pid in inside.into_iter().filter_map(Pid::from_raw) {
            // Gone in the meantime is what is wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(5));
        inside = residents(lease_dir, group);
    }
    while !group.remove() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    wipe::wipe(lease, lease_dir, left, inside.is_empty() && group.remove())
}

fn ms_since(start: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX)
}

fn spawn_named(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(256 << 10)
        .spawn(work)
        .during("start a thread")
        .map(drop)
}

/// Starts the helper under the box's limits and has it make the namespaces.
fn hold(config: &BoxConfig, view: &BoxView, group: &BoxGroup, uid: u32) -> Result<(Holder, Devices)> {
    let holder = Holder::spawn(&config.helper)?;
    group.attach(holder.pid())?;
    let devices = holder.setup(Setup {
        tun_device: config.tun_device.clone(),
        ip: config.spec.ip,
        ip6: config.spec.ip6,
        prefix: config.spec.prefix,
        mtu: config.spec.mtu,
        out_mtu: config.out_mtu,
        binds: view.binds(),
        uid,
    })?;
    Ok((holder, devices))
}

fn view_of(config: &BoxConfig) -> Result<BoxView> {
    let spec = &config.spec;
    let environment = match &spec.engine {
        Engine::Ray { environment, .. } => {
            fs::create_dir_all(&config.environments_dir).during("make the environments folder")?;
            Environment::resolve(environment)?;
            Some((config.environments_dir.clone(), environment::folder_name(environment)))
        }
        Engine::Command { .. } => None,
    };
    let HelperExe(exe, before) = &config.helper;
    let before = before.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let variables = [
        ("PATH", format!("{ENVIRONMENT}/bin:/usr/local/bin:/usr/bin:/bin")),
        ("HOME", HOME.into()),
        ("USER", "work".into()),
        ("LANG", "C.UTF-8".into()),
        ("TMPDIR", "/tmp".into()),
        ("IONET_MEMBER_IP", spec.ip.to_string()),
        ("IONET_HEAD_IP", spec.head_ip.to_string()),
        ("IONET_MEMBERS", spec.members.to_string()),
    ];
    Ok(BoxView {
        lease_dir: config.lease_dir.clone(),
        launcher: (exe.clone(), before),
        environment,
        files: Vec::new(),
        hostname: format!("member-{}", spec.ip.octets()[3]),
        // The object store and what else a program shares; it counts as the box's memory anyway.
        shm_bytes: spec.limits.memory_bytes / 2 + (16 << 20),
        devices: bwrap::gpu_devices(Path::new("/proc/driver/nvidia"), &spec.limits.gpus)?,
        variables: variables.map(|(name, value)| (name.to_owned(), value)).into(),
    })
}

fn program_of(spec: &BoxSpec) -> Program {
    match &spec.engine {
        Engine::Command { argv, env } => command::program(argv, env),
        Engine::Ray { role, jupyter, token, failure_detection, fast_start, .. } => {
            let node = ray::Node {
                role: *role,
                jupyter: *jupyter,
                token,
                failure_detection: *failure_detection,
                fast_start: *fast_start,
            };
            ray::program(spec, &node)
        }
    }
}

/// Puts the engine's own files where the box will see them.
fn write_files(config: &BoxConfig, view: &mut BoxView) -> Result<()> {
    for (n, (place, text)) in program_of(&config.spec).files.into_iter().enumerate() {
        let path = config.lease_dir.join("etc").join(format!("engine-{n}"));
        fs::write(&path, text).during("write the engine's files")?;
        view.files.push((path, place.to_owned()));
    }
    Ok(())
}

/// As root: makes the box's own unprivileged user the owner of its folders. Gives that user.
fn give_folders(lease_dir: &Path) -> Result<u32> {
    let folders = [lease_dir.join("work"), lease_dir.join("tmp")];
    let own = fs::metadata(lease_dir).during("look at the lease's folder")?;
    let mut uid = own.uid();
    if geteuid().is_root() {
        let wanted = FIRST_BOX_UID + (u32::try_from(own.ino() & 0xff_ffff).unwrap_or(0));
        let give = |uid| folders.iter().try_for_each(|f| std::os::unix::fs::chown(f, Some(uid), Some(uid)));
        // In a user namespace with few ids the high ones do not exist.
        uid = if give(wanted).is_ok() { wanted } else { NOBODY };
        give(uid).during("give the box its folders")?;
    }
    for folder in &folders {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).during("close the box's folders")?;
    }
    Ok(uid)
}

/// Begins to prepare; an engine that needs nothing is ready to launch at once.
fn begin(config: &BoxConfig) -> Result<Stage> {
    let (tell, news) = mpsc::channel();
    let (wanted, stop) = environment::wanted();
    let environment = match &config.spec.engine {
        Engine::Ray { environment, .. } => Some(Environment::resolve(environment)?),
        Engine::Command { .. } => None,
    };
    match environment {
        Some(environment) => {
            let folder = config.environments_dir.clone();
            spawn_named("box-prepare", move || prepare(&folder, environment, &stop, &tell))?;
        }
        None => {
            let _ = tell.send(Preparation::Done(Ok(PathBuf::new())));
        }
    }
    Ok(Stage::Preparing { news, progress: 0, detail: "starting".into(), _wanted: wanted })
}

fn prepare(folder: &Path, environment: &Environment, stop: &Stop, tell: &Sender<Preparation>) {
    let done = environment::prepare(folder, environment, stop, &mut |percent, step| {
        let _ = tell.send(Preparation::Step(percent, step.to_owned()));
    });
    let _ = tell.send(Preparation::Done(done));
}

/// Measures the lease's folder every few seconds until the sender is dropped.
fn watch_disk(lease_dir: &Path) -> Result<(Sender<()>, Receiver<u64>)> {
    let (stop, stopped) = mpsc::channel::<()>();
    let (tell, news) = mpsc::channel();
    let lease_dir = lease_dir.to_path_buf();
    spawn_named("box-disk", move || {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(DISK_CHECK_EVERY) {
            if tell.send(wipe::disk_usage_bytes(&lease_dir)).is_err() {
                return;
            }
        }
    })?;
    Ok((stop, news))
}

fn read_lines(pipe: File, tell: &SyncSender<String>) {
    // The box's customer could write to this pipe: a line is cut rather than kept without end.
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        match pipe.by_ref().take(64 << 10).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if tell.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// Copies output to `output.log`; a full one becomes `output.log.1`.
fn keep_log(mut pipe: File, folder: &Path) {
    let path = folder.join("output.log");
    let mut written = 0;
    let mut buffer = [0; 8192];
    let _ = fs::create_dir_all(folder);
    // What an engine that was started again had said before stays to be read.
    let _ = fs::rename(&path, folder.join("output.log.1"));
    let mut file = File::create(&path).ok();
    while let Ok(read @ 1..) = pipe.read(&mut buffer) {
        if written > LOG_BYTES {
            let _ = fs::rename(&path, folder.join("output.log.1"));
            file = File::create(&path).ok();
            written = 0;
        }
        // A disk that is full must not block the program: its output is dropped then.
        if let Some(file) = &mut file {
            let _ = file.write_all(&buffer[..read]);
        }
        written += read as u64;
    }
}
