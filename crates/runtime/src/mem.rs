//! The in-memory twin of the sandbox, for simulations under virtual time.
//!
//! Always holds: boxes live in a shared [`MemHost`], so they survive a crash of the agent that holds a
//! [`MemSandbox`]; nothing happens but by a call; reports are ordered by lease.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    Error, Result,
    limits::Enforcement,
    sandbox::{BoxReport, BoxSpec, Engine, Phase, Role, Sandbox, Timeline, WipeReceipt},
};

/// One machine's boxes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemHost(Arc<Mutex<Host>>);

#[derive(Debug, Default)]
struct Host {
    now_ms: u64,
    start_delay_ms: u64,
    delays_ms: BTreeMap<String, u64>,
    boxes: BTreeMap<String, MemBox>,
    refusal: Option<String>,
    lies: BTreeMap<String, Phase>,
}

#[derive(Debug)]
struct MemBox {
    spec: BoxSpec,
    started_ms: u64,
    ready_at_ms: u64,
    /// Set when it ended by itself, broke or was removed.
    end: Option<Phase>,
}

/// The agent's handle on a [`MemHost`]; as many as wanted, one after another.
#[derive(Clone, Debug)]
pub struct MemSandbox(MemHost);

impl MemHost {
    /// A machine on which every box takes `start_delay_ms` to become ready.
    pub fn new(start_delay_ms: u64) -> Self {
        let this = Self::default();
        this.lock().start_delay_ms = start_delay_ms;
        this
    }

    /// A handle for an agent that starts or starts again.
    pub fn sandbox(&self) -> MemSandbox {
        MemSandbox(self.clone())
    }

    /// Sets the virtual time; it never goes back.
    pub fn advance(&self, now_ms: u64) {
        let mut host = self.lock();
        host.now_ms = host.now_ms.max(now_ms);
    }

    /// The start delay of one lease's next box.
    pub fn delay(&self, lease: &str, delay_ms: u64) {
        self.lock().delays_ms.insert(lease.into(), delay_ms);
    }

    /// From now on new boxes are refused with this message; `None` ends that.
    pub fn refuse(&self, message: Option<&str>) {
        self.lock().refusal = message.map(str::to_owned);
    }

    /// The box's program ends with this code.
    pub fn exit(&self, lease: &str, code: i32) {
        self.end(lease, Phase::Exited { code });
    }

    /// The box breaks.
    pub fn fail(&self, lease: &str, code: &str, message: &str) {
        self.end(lease, Phase::Failed { code: code.into(), message: message.into() });
    }

    /// The box vanishes without a trace, as when its supervisor was killed and its folder deleted.
    pub fn lose(&self, lease: &str) {
        self.lock().boxes.remove(lease);
    }

    /// The machine loses power: every box dies.
    pub fn power_loss(&self) {
        let mut host = self.lock();
        for it in host.boxes.values_mut().filter(|it| it.end.is_none()) {
            it.end = Some(Phase::Failed { code: "box_lost".into(), message: "the machine restarted".into() });
        }
    }

    /// Reports say this of the lease, whatever is true; `None` ends the lie.
    pub fn lie(&self, lease: &str, phase: Option<Phase>) {
        let mut host = self.lock();
        match phase {
            Some(phase) => host.lies.insert(lease.into(), phase),
            None => host.lies.remove(lease),
        };
    }

    /// Leases whose boxes really run now.
    pub fn running(&self) -> Vec<String> {
        let host = self.lock();
        host.boxes.iter().filter(|(_, it)| it.end.is_none()).map(|(lease, _)| lease.clone()).collect()
    }

    /// Whether the box of this lease really runs now.
    pub fn is_running(&self, lease: &str) -> bool {
        self.lock().boxes.get(lease).is_some_and(|it| it.end.is_none())
    }

    fn end(&self, lease: &str, phase: Phase) {
        if let Some(it) = self.lock().boxes.get_mut(lease).filter(|it| it.end.is_none()) {
            it.end = Some(phase);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox for MemSandbox {
    fn ensure(&mut self, spec: &BoxSpec) -> Result<()> {
        spec.check()?;
        let mut host = self.0.lock();
        if let Some(there) = host.boxes.get(&spec.lease) {
            return if there.spec == *spec { Ok(()) } else { Err(changed(&spec.lease)) };
        }
        if let Some(message) = &host.refusal {
            return Err(Error::Helper { message: message.clone() });
        }
        let delay_ms = host.delays_ms.remove(&spec.lease).unwrap_or(host.start_delay_ms);
        let started_ms = host.now_ms;
        let ready_at_ms = started_ms.saturating_add(delay_ms);
        host.boxes
            .insert(spec.lease.clone(), MemBox { spec: spec.clone(), started_ms, ready_at_ms, end: None });
        Ok(())
    }

    fn remove(&mut self, lease: &str, _reason: &str) -> Result<()> {
        if let Some(it) = self.0.lock().boxes.get_mut(lease)
            && !matches!(it.end, Some(Phase::Removed { .. }))
        {
            let killed = u64::from(it.end.is_none());
            it.end = Some(Phase::Removed { wipe: receipt(lease, killed) });
        }
        Ok(())
    }

    fn observe(&mut self) -> Vec<BoxReport> {
        let host = self.0.lock();
        host.boxes.iter().map(|(lease, it)| it.report(lease, &host)).collect()
    }
}

fn changed(lease: &str) -> Error {
    Error::Refused {
        code: "box_spec_changed",
        message: format!("lease {lease} runs with another spec; remove it first or use a new lease"),
    }
}

fn receipt(lease: &str, processes_killed: u64) -> WipeReceipt {
    let method = "in-memory box dropped".into();
    WipeReceipt { lease: lease.into(), files: 0, bytes: 0, processes_killed, method, finished: true }
}

impl MemBox {
    fn report(&self, lease: &str, host: &Host) -> BoxReport {
        let ready = host.now_ms >= self.ready_at_ms;
        let truth = match &self.end {
            Some(end) => end.clone(),
            None if ready => Phase::Ready,
            None => Phase::Starting,
        };
        let took_ms = ready.then_some(self.ready_at_ms - self.started_ms);
        BoxReport {
            lease: lease.into(),
            phase: host.lies.get(lease).cloned().unwrap_or(truth),
            timeline: self.timeline(took_ms),
            enforcement: Enforcement::Cgroup2,
            started_ms: self.started_ms,
            ready_ms: ready.then_some(self.ready_at_ms),
        }
    }

    /// All parts take as long as the whole; a head has the services' parts too.
    fn timeline(&self, took_ms: Option<u64>) -> Timeline {
        let head = match &self.spec.engine {
            Engine::Ray { role: Role::Head, .. } => took_ms,
            _ => None,
        };
        Timeline {
            boxes_ms: took_ms,
            overlay_ms: took_ms,
            engine_ms: took_ms,
            first_task_ms: head,
            jobs_api_ms: head,
            client_ms: head,
        }
    }
}
