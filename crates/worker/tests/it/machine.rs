//! What the machine has and can do, with a stand-in for the GPU driver's library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ionet_domain::device::{Gpu, GpuCheck};
use ionet_worker::inventory::{self, Places};
use ionet_worker::telemetry::Sampler;
use ionet_worker::{check, nvml::Nvml};

/// Two cards; the second one reports no power, as some do not. `COUNT`, `STATUS`, `INIT`, `LOST` and `BROKEN` break it.
const STAND_IN: &str = r#"
#include <string.h>
#include <unistd.h>
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Use;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, sub; char bus_id[32]; } Pci;
static int up;
static int cards[2];
int nvmlInit_v2(void) { if (!INIT) up++; return INIT; }
int nvmlShutdown(void) { up--; return 0; }
const char *nvmlErrorString(int status) { switch (status) { case 1: return "Uninitialized"; case 15: return "GPU is lost"; case 18: return "Driver/library version mismatch"; default: return "Unknown Error"; } }
int nvmlDeviceGetCount_v2(unsigned *count) { if (!up) return 1; if (access(BROKEN, F_OK) == 0) return 18; *count = COUNT; return STATUS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { *device = &cards[i]; return 0; }
static int index_of(void *device) { return (int *)device - cards; }
int nvmlDeviceGetName(void *d, char *to, unsigned n) { strncpy(to, "NVIDIA Test 4000", n); return 0; }
int nvmlDeviceGetUUID(void *d, char *to, unsigned n) { if (index_of(d) == LOST) return 15; strncpy(to, index_of(d) ? "GPU-b" : "GPU-a", n); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, Memory *m) { m->total = 8ull << 30; m->used = 1ull << 30; m->free = 7ull << 30; return 0; }
int nvmlDeviceGetUtilizationRates(void *d, Use *u) { u->gpu = 37; u->memory = 5; return 0; }
int nvmlDeviceGetTemperature(void *d, unsigned sensor, unsigned *t) { *t = 61; return sensor == 0 ? 0 : 2; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { if (index_of(d)) return 3; *mw = 70500; return 0; }
int nvmlDeviceGetPciInfo_v3(void *d, Pci *p) { strcpy(p->bus_id, index_of(d) ? "00000000:02:00.0" : "00000000:01:00.0"); return 0; }
"#;

struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// The stand-in with so many cards, broken as said: `INIT` and `STATUS` are what loading and counting give, `LOST`
    /// the card that fell off the bus.
    fn library(&self, count: u32, broken: &[(&str, i32)]) -> PathBuf {
        let source = self.folder.path().join("stand-in.c");
        let library = self.folder.path().join(format!("libnvidia-ml-{count}-{broken:?}.so"));
        fs::write(&source, STAND_IN).unwrap();
        let value = |name| broken.iter().find(|(it, _)| *it == name).map(|(_, value)| *value);
        let mut build = Command::new("cc");
        build.args(["-shared", "-fPIC", "-w", &format!("-DCOUNT={count}")]);
        for (name, usual) in [("STATUS", 0), ("INIT", 0), ("LOST", -1)] {
            build.arg(format!("-D{name}={}", value(name).unwrap_or(usual)));
        }
        build.arg(format!("-DBROKEN=\"{}\"", self.broken().display()));
        assert!(build.arg("-o").arg(&library).arg(&source).status().unwrap().success());
        library
    }

    /// While this file is there the driver does not answer.
    fn broken(&self) -> PathBuf {
        self.folder.path().join("broken")
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.folder.path().join("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn places(&self, library: PathBuf) -> Places {
        Places { root: self.folder.path().join("root"), nvml_library: library }
    }
}

#[test]
fn gpus_are_found_and_measured_through_the_drivers_library() {
    let machine = Machine::new();
    machine.file("proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 400000 kB\n");
    // The kernel lists one card by its driver and the other on the bus alone.
    machine.file("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t Test\nGPU UUID: \t GPU-a\n");
    machine.file("sys/bus/pci/devices/0000:02:00.0/vendor", "0x10de\n");
    let places = machine.places(machine.library(2, &[]));
    let hardware = inventory::take(&places);
    let gpu = |uuid: &str| Gpu { uuid: uuid.into(), model: "NVIDIA Test 4000".into(), memory_bytes: 8 << 30 };
    assert_eq!(hardware.gpus, [gpu("GPU-a"), gpu("GPU-b")]);
    assert_eq!(hardware.memory_bytes, 1_000_000 * 1024);
    let checked =
        |uuid: &str| GpuCheck { uuid: uuid.into(), kernel_sees: true, driver_memory_bytes: Some(8 << 30) };
    let measured = check::measure(&places, machine.folder.path(), 1).unwrap();
    assert_eq!(measured.gpus, [checked("GPU-a"), checked("GPU-b")]);
    let telemetry = Sampler::new(places).sample(0, Path::new("/"), &[].into());
    let cards: Vec<_> = telemetry.gpus.iter().map(|gpu| (gpu.temperature_c, gpu.power_mw)).collect();
    assert_eq!(cards, [(61, 70_500), (61, 0)]);
    assert_eq!((telemetry.gpus[0].utilisation_percent, telemetry.gpus[0].memory_used_bytes), (37, 1 << 30));
}

#[test]
fn a_card_that_the_kernel_does_not_list_is_found_out() {
    let machine = Machine::new();
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x8086\n");
    let measured =
        check::measure(&machine.places(machine.library(1, &[])), machine.folder.path(), 1).unwrap();
    assert_eq!(measured.gpus.iter().map(|gpu| gpu.kernel_sees).collect::<Vec<_>>(), [false]);
}

#[test]
fn what_cannot_be_hired_is_listed_with_the_reason() {
    let machine = Machine::new();
    for (at, vendor, device) in [
        ("0000:01:00.0", "0x1002", "0x73bf"),
        ("0000:02:00.0", "0x10de", "0x2204"),
        ("0000:03:00.0", "0x8086", "0x1"),
    ] {
        machine.file(&format!("sys/bus/pci/devices/{at}/class"), "0x030000\n");
        machine.file(&format!("sys/bus/pci/devices/{at}/vendor"), vendor);
        machine.file(&format!("sys/bus/pci/devices/{at}/device"), device);
    }
    machine.file("proc/device-tree/compatible", "apple,j314s\0apple,t6000\0");
    let hardware = inventory::take(&machine.places("/nonexistent/libnvidia-ml.so.1".into()));
    let [amd, nvidia, apple] = &hardware.unsupported[..] else { panic!("{hardware:?}") };
    assert!(amd.contains("AMD GPU 0x73bf") && amd.contains("only NVIDIA"), "{amd}");
    assert!(nvidia.contains("no NVIDIA driver is installed"), "{nvidia}");
    assert!(apple.contains("Apple"), "{apple}");
}

#[test]
fn a_library_that_fails_says_what_it_said() {
    let machine = Machine::new();
    let nvml = Nvml::open(&machine.library(1, &[("STATUS", 9)])).unwrap().unwrap();
    let error = nvml.gpus().unwrap_err();
    assert_eq!(error.code(), "nvml_failed");
    assert!(error.to_string().contains("Unknown Error"), "{error}");
    let no_library = machine.folder.path().join("notes.so");
    fs::write(&no_library, "text").unwrap();
    assert_eq!(Nvml::open(&no_library).unwrap_err().code(), "nvml_failed");
    assert!(Nvml::open(Path::new("/nonexistent/lib.so")).unwrap().is_none());
}

#[test]
fn a_driver_that_does_not_fit_is_told_and_offers_nothing() {
    let machine = Machine::new();
    machine.file("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n");
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n");
    for (broken, said) in
        [(("INIT", 18), "Driver/library version mismatch"), (("STATUS", 999), "Unknown Error")]
    {
        let places = machine.places(machine.library(1, &[broken]));
        let hardware = inventory::take(&places);
        assert!(hardware.gpus.is_empty(), "{hardware:?}");
        assert!(hardware.unsupported[0].contains(said), "{hardware:?}");
        assert_eq!(check::measure(&places, machine.folder.path(), 1).unwrap().gpus, []);
        assert_eq!(Sampler::new(places).sample(0, Path::new("/"), &[].into()).gpus, []);
    }
}

#[test]
fn a_card_that_fell_off_the_bus_takes_no_other_with_it() {
    let machine = Machine::new();
    let places = machine.places(machine.library(2, &[("LOST", 0)]));
    let hardware = inventory::take(&places);
    assert_eq!(hardware.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect::<Vec<_>>(), ["GPU-b"]);
    assert!(matches!(&hardware.unsupported[..], [why] if why.contains("GPU is lost")), "{hardware:?}");
    let measured = check::measure(&places, machine.folder.path(), 1).unwrap();
    assert_eq!(measured.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect::<Vec<_>>(), ["GPU-b"]);
    let telemetry = Sampler::new(places).sample(0, Path::new("/"), &[].into());
    assert_eq!(telemetry.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect::<Vec<_>>(), ["GPU-b"]);
}

#[test]
fn a_driver_that_breaks_and_comes_back_is_found_again() {
    let machine = Machine::new();
    let mut sampler = Sampler::new(machine.places(machine.library(2, &[])));
    let mut cards = || sampler.sample(0, Path::new("/"), &[].into()).gpus.len();
    assert_eq!(cards(), 2);
    fs::write(machine.broken(), "").unwrap();
    assert_eq!(cards(), 0);
    fs::remove_file(machine.broken()).unwrap();
    assert_eq!((0..20).map(|_| cards()).max(), Some(2));
}

#[test]
fn a_check_measures_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places { nvml_library: "/nonexistent/lib.so".into(), ..Places::default() };
    let measured = check::measure(&places, folder.path(), 2).unwrap();
    assert!(measured.cpu_one_mb_s > 1 && measured.memory_mb_s > 10, "{measured:?}");
    assert!(
        measured.cpu_all_mb_s > 1 && measured.disk_write_mb_s > 0 && measured.disk_read_mb_s > 0,
        "{measured:?}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let error = check::measure(&places, Path::new("/nonexistent/data"), 1).unwrap_err();
    assert_eq!(error.code(), "worker_io");
}
