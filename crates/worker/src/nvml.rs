//! NVIDIA's management library, loaded at run time: what GPUs there are and how they are.
//!
//! Always holds: a machine without the driver is no error; every handle is used while the library is initialised; all
//! unsafe code of this crate is here. Not here: what becomes of the numbers (`inventory`, `telemetry`, `check`).

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;

use ionet_api::worker::GpuTelemetry;
use ionet_domain::device::Gpu;
use libloading::Library;

use crate::error::{Result, WorkerError};

/// The library's usual name, found by the system's loader.
pub const LIBRARY: &str = "libnvidia-ml.so.1";

type Status = c_int;
type Device = *mut c_void;

const SUCCESS: Status = 0;
/// `NVML_DEVICE_UUID_V2_BUFFER_SIZE` and `NVML_DEVICE_NAME_V2_BUFFER_SIZE` of `nvml.h`.
const TEXT_BYTES: usize = 96;
/// `NVML_TEMPERATURE_GPU` of `nvml.h`.
const SENSOR_GPU: c_uint = 0;

/// `nvmlMemory_t` of `nvml.h`.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlUtilization_t` of `nvml.h`.
#[repr(C)]
#[derive(Default)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlPciInfo_t` of `nvml.h`.
#[repr(C)]
#[derive(Default)]
struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

type Text = unsafe extern "C" fn(Device, *mut c_char, c_uint) -> Status;

struct Calls {
    shutdown: unsafe extern "C" fn() -> Status,
    count: unsafe extern "C" fn(*mut c_uint) -> Status,
    by_index: unsafe extern "C" fn(c_uint, *mut Device) -> Status,
    name: Text,
    uuid: Text,
    memory: unsafe extern "C" fn(Device, *mut Memory) -> Status,
    utilization: unsafe extern "C" fn(Device, *mut Utilization) -> Status,
    temperature: unsafe extern "C" fn(Device, c_uint, *mut c_uint) -> Status,
    power: unsafe extern "C" fn(Device, *mut c_uint) -> Status,
    pci: unsafe extern "C" fn(Device, *mut PciInfo) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
}

/// The loaded and initialised library.
pub struct Nvml {
    calls: Calls,
    name: String,
    /// Keeps the functions mapped.
    _library: Library,
}

/// A GPU with where it sits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverGpu {
    /// As the inventory claims it.
    pub gpu: Gpu,
    /// Its place as the kernel names it, such as `0000:01:00.0`; empty if the driver does not say.
    pub pci: String,
}

fn failed(library: &str, reason: String) -> WorkerError {
    WorkerError::Nvml { library: library.into(), reason }
}

/// What the system's loader said.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Looks up one function of `nvml.h`.
fn function<T: Copy>(library: &Library, name: &CStr) -> std::result::Result<T, libloading::Error> {
    // SAFETY: every `T` in `Calls` has the signature that `nvml.h` gives the function of this name; the copied pointer
    // is kept beside the library that it points into.
    unsafe { library.get::<T>(name.to_bytes_with_nul()) }.map(|symbol| *symbol)
}

impl Calls {
    fn load(library: &Library) -> std::result::Result<Self, libloading::Error> {
        Ok(Self {
            shutdown: function(library, c"nvmlShutdown")?,
            count: function(library, c"nvmlDeviceGetCount_v2")?,
            by_index: function(library, c"nvmlDeviceGetHandleByIndex_v2")?,
            name: function(library, c"nvmlDeviceGetName")?,
            uuid: function(library, c"nvmlDeviceGetUUID")?,
            memory: function(library, c"nvmlDeviceGetMemoryInfo")?,
            utilization: function(library, c"nvmlDeviceGetUtilizationRates")?,
            temperature: function(library, c"nvmlDeviceGetTemperature")?,
            power: function(library, c"nvmlDeviceGetPowerUsage")?,
            pci: function(library, c"nvmlDeviceGetPciInfo_v3")?,
            error: function(library, c"nvmlErrorString")?,
        })
    }

    fn check(&self, library: &str, status: Status) -> Result<()> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: gives a static, terminated text for every status, known or not.
        let text = unsafe { (self.error)(status) };
        let reason = if text.is_null() {
            format!("status {status}")
        } else {
            // SAFETY: not null, and terminated as `nvml.h` says.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(failed(library, reason))
    }
}

impl Nvml {
    /// Loads and initialises the library; `None` if this machine has none.
    pub fn open(library: &Path) -> Result<Option<Self>> {
        let name = library.display().to_string();
        // SAFETY: loading runs the library's initialisers; the driver's library is trusted as the driver is.
        let loaded = match unsafe { Library::new(library) } {
            Ok(loaded) => loaded,
            Err(error) if cause(&error).contains("No such file") => return Ok(None),
            Err(error) => return Err(failed(&name, cause(&error))),
        };
        let load = || Ok((function(&loaded, c"nvmlInit_v2")?, Calls::load(&loaded)?));
        let (init, calls): (unsafe extern "C" fn() -> Status, Calls) =
            load().map_err(|error: libloading::Error| failed(&name, cause(&error)))?;
        // SAFETY: takes nothing; `Drop` shuts down what this initialises, and only that.
        calls.check(&name, unsafe { init() })?;
        Ok(Some(Self { calls, name, _library: loaded }))
    }

    fn check(&self, status: Status) -> Result<()> {
        self.calls.check(&self.name, status)
    }

    /// All GPUs that the driver knows, each with what it is or why it does not say, as when it fell off the bus.
    pub fn gpus(&self) -> Result<Vec<Result<DriverGpu>>> {
        self.each(|device| self.gpu(device))
    }

    /// How every GPU is now that answers; what a card does not report is 0.
    pub fn telemetry(&self) -> Result<Vec<GpuTelemetry>> {
        Ok(self.each(|device| self.gpu_telemetry(device))?.into_iter().flatten().collect())
    }

    fn each<T>(&self, ask: impl Fn(Device) -> Result<T>) -> Result<Vec<Result<T>>> {
        let mut count = 0;
        // SAFETY: writes one unsigned int to a live one.
        self.check(unsafe { (self.calls.count)(&raw mut count) })?;
        Ok((0..count).map(|index| ask(self.device(index)?)).collect())
    }

    fn device(&self, index: c_uint) -> Result<Device> {
        let mut device = std::ptr::null_mut();
        // SAFETY: writes one handle to a live one.
        self.check(unsafe { (self.calls.by_index)(index, &raw mut device) })?;
        Ok(device)
    }

    fn gpu(&self, device: Device) -> Result<DriverGpu> {
        let gpu = Gpu {
            uuid: self.text(device, self.calls.uuid)?,
            model: self.text(device, self.calls.name)?,
            memory_bytes: self.memory(device)?.total,
        };
        Ok(DriverGpu { gpu, pci: self.pci(device) })
    }

    fn text(&self, device: Device, call: Text) -> Result<String> {
        let mut text = [0 as c_char; TEXT_BYTES];
        let length = c_uint::try_from(TEXT_BYTES).unwrap_or(0);
        // SAFETY: `device` is a handle of this initialised library; it writes at most `length` bytes.
        self.check(unsafe { call(device, text.as_mut_ptr(), length) })?;
        Ok(terminated(&text))
    }

    fn memory(&self, device: Device) -> Result<Memory> {
        let mut memory = Memory::default();
        // SAFETY: a handle of this library and a live struct of the layout in `nvml.h`.
        self.check(unsafe { (self.calls.memory)(device, &raw mut memory) })?;
        Ok(memory)
    }

    fn pci(&self, device: Device) -> String {
        let mut info = PciInfo::default();
        // SAFETY: a handle of this library and a live struct of the layout in `nvml.h`.
        let status = unsafe { (self.calls.pci)(device, &raw mut info) };
        if status != SUCCESS {
            return String::new();
        }
        // The library writes the domain with eight digits, the kernel with four.
        let long = terminated(&info.bus_id).to_lowercase();
        long.strip_prefix("0000").filter(|_| long.len() == 16).map_or(long.clone(), str::to_owned)
    }

    fn gpu_telemetry(&self, device: Device) -> Result<GpuTelemetry> {
        let memory = self.memory(device)?;
        let (mut used, mut temperature_c, mut power_mw) = (Utilization::default(), 0, 0);
        // Some cards do not report these; then they stay 0.
        // SAFETY: a handle of this library and live values of the types in `nvml.h`, here and in the next two.
        let _ = unsafe { (self.calls.utilization)(device, &raw mut used) };
        // SAFETY: as above.
        let _ = unsafe { (self.calls.temperature)(device, SENSOR_GPU, &raw mut temperature_c) };
        // SAFETY: as above.
        let _ = unsafe { (self.calls.power)(device, &raw mut power_mw) };
        Ok(GpuTelemetry {
            uuid: self.text(device, self.calls.uuid)?,
            utilisation_percent: used.gpu,
            memory_used_bytes: memory.used,
            memory_bytes: memory.total,
            temperature_c,
            power_mw,
        })
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: initialised once by `open`; no handle is kept past a call.
        let _ = unsafe { (self.calls.shutdown)() };
    }
}

impl std::fmt::Debug for Nvml {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nvml({})", self.name)
    }
}

/// The text up to its end mark; all of it if there is none.
fn terminated(text: &[c_char]) -> String {
    let bytes: Vec<u8> = text.iter().map(|c| c.to_ne_bytes()[0]).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
