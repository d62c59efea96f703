//! What can be wished for beside hardware, size and time: kind of work, least GPU, isolation, preference; and how a kind of
//! work completes what was not said.
//!
//! Always holds: a completed request asks for nothing more than the one that was sent, it only says which choice among
//! devices that all would do is the better one. Not here: the conditions themselves (`conditions`), the choice (`choice`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::hardware;
use super::request::Request;
use crate::device::HardwareClass;
use crate::refusal::Refusal;

/// An enum that is written as one of its words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $field:literal, $($(#[$each:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$each])* $variant),+ }

        impl $name {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $word),+ })
            }
        }

        impl FromStr for $name {
            type Err = Refusal;
            fn from_str(text: &str) -> Result<Self, Refusal> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(Self::unknown(text, &[$($word),+].join(", "))),
                }
            }
        }

        crate::id::serde_as_text!($name);

        impl Named for $name {
            const FIELD: &'static str = $field;
        }
    };
}

/// The field of a request that a word stands in.
trait Named {
    const FIELD: &'static str;

    fn unknown(text: &str, known: &str) -> Refusal {
        Refusal::out_of_range(Self::FIELD, text.chars().take(40).collect::<String>(), known)
    }
}

words! {
    /// What the work is, by its renter's word. It decides what is better among devices that all would do.
    #[derive(Default)]
    WorkKind, "kind",
    /// Price counts.
    #[default]
    General = "general",
    /// Training: memory, links and members near each other count.
    Train = "train",
    /// Inference: latency, failure domains and the price of a token count.
    Inference = "inference",
}

impl WorkKind {
    /// Whether it is what holds where nothing is said.
    pub fn is_general(&self) -> bool {
        *self == Self::General
    }
}

words! {
    /// Which of the devices that would do are the better ones. All but the cheapest may cost a bounded share more
    /// (`PriceParams::premium_ppm`).
    Preference, "prefer",
    /// The cheapest.
    Cheapest = "cheapest",
    /// The fastest hardware.
    Fastest = "fastest",
    /// Members near each other.
    Together = "together",
    /// Members on different suppliers and in different regions.
    Apart = "apart",
    /// Near the callers.
    Near = "near",
}

/// What keeps a box from its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isolation {
    /// A process box: own user, network, processes and files; others may be on the same machine.
    Process,
    /// The same, on machines that enforce limits on CPU, memory and processes.
    Limits,
    /// A process box on a machine that lets in one tenant at a time (those that cannot enforce limits).
    OneTenant,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Process => "process",
            Self::Limits => "limits",
            Self::OneTenant => "one-tenant",
        })
    }
}

impl FromStr for Isolation {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let reason = match text {
            "process" => return Ok(Self::Process),
            "limits" => return Ok(Self::Limits),
            "one-tenant" => return Ok(Self::OneTenant),
            "sandbox" => "no device offers a second kernel between box and host yet",
            "container" => "container boxes are not built yet",
            "vm" | "microvm" => "virtual machines need the microvm box, which is not built yet",
            "confidential" => "no device proves encrypted memory yet",
            _ => "there is no such isolation",
        };
        Err(Refusal::Unsupported {
            what: format!("isolation '{}'", text.chars().take(40).collect::<String>()),
            reason: reason.into(),
            available: "process, limits, one-tenant".into(),
        })
    }
}

crate::id::serde_as_text!(Isolation);

/// The least that each GPU must be; zero asks for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GpuMinimum {
    /// Memory in bytes, as its driver reported it in the check.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    /// Memory bandwidth in GB/s, by the table of data sheets.
    #[serde(skip_serializing_if = "is_zero")]
    pub bandwidth_gb_s: u64,
    /// FP16 shader rate in GFLOPS, by the table of data sheets.
    #[serde(skip_serializing_if = "is_zero")]
    pub fp16_gflops: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks it")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl GpuMinimum {
    /// Whether nothing is asked.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a class of hardware is enough by the data sheets; a model that they do not have is not.
    pub fn met_by(&self, class: &HardwareClass) -> bool {
        if self.bandwidth_gb_s == 0 && self.fp16_gflops == 0 {
            return true;
        }
        let HardwareClass::Gpu(model) = class else { return false };
        hardware::find(model).is_some_and(|known| {
            u64::from(known.bandwidth_gb_s) >= self.bandwidth_gb_s
                && u64::from(known.fp16_gflops) >= self.fp16_gflops
        })
    }
}

impl fmt::Display for GpuMinimum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.memory_bytes > 0, format!("{} MiB memory", self.memory_bytes >> 20)),
            (self.bandwidth_gb_s > 0, format!("{} GB/s", self.bandwidth_gb_s)),
            (self.fp16_gflops > 0, format!("{} FP16 GFLOPS", self.fp16_gflops)),
        ];
        let asked: Vec<_> = parts.into_iter().filter(|(is, _)| *is).map(|(_, text)| text).collect();
        if asked.is_empty() { f.write_str("any") } else { f.write_str(&asked.join(", ")) }
    }
}

/// Whether a region is `wanted` or lies in it: `us-east` lies in `us`.
pub fn region_within(region: &str, wanted: &str) -> bool {
    region.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Most entries of a list in a request.
const MOST_LISTED: usize = 32;

impl Request {
    /// The request with what its kind of work makes of what was not said.
    #[must_use]
    pub fn completed(&self) -> Self {
        let most = if self.spread { Some(1) } else { self.max_per_device };
        Self {
            prefer: Some(self.preference()),
            isolation: self.isolation.or(Some(Isolation::Process)),
            max_per_device: most,
            spread: self.spread || most == Some(1),
            ..self.clone()
        }
    }

    /// Which of the devices that would do are the better ones: as asked, or by the kind of work.
    pub fn preference(&self) -> Preference {
        let by_kind = match self.kind {
            _ if self.near.is_some() && self.members == 1 => Preference::Near,
            WorkKind::General if self.near.is_some() => Preference::Near,
            WorkKind::General => Preference::Cheapest,
            WorkKind::Train => Preference::Together,
            WorkKind::Inference => Preference::Apart,
        };
        self.prefer.unwrap_or(by_kind)
    }

    /// The most members on one device; `None` where as many may be as fit.
    pub fn most_per_device(&self) -> Option<u32> {
        if self.spread { Some(1) } else { self.max_per_device }
    }

    /// Whether the wishes make sense by themselves.
    pub(super) fn check_wishes(&self) -> Result<(), Refusal> {
        let words = |field: &str, words: Vec<&String>| {
            let word = |w: &str| {
                (1..=40).contains(&w.len())
                    && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            };
            match words.into_iter().find(|text: &&String| !word(text)) {
                Some(wrong) => Err(Refusal::out_of_range(
                    field,
                    wrong.chars().take(60).collect::<String>(),
                    "1 to 40 letters, digits, '-', '_' or '.'",
                )),
                None => Ok(()),
            }
        };
        words("regions", self.regions.iter().collect())?;
        words("not_regions", self.not_regions.iter().collect())?;
        words("near", self.near.iter().collect())?;
        let lists =
            [self.regions.len(), self.not_regions.len(), self.suppliers.len(), self.not_suppliers.len()];
        if let Some(many) = lists.into_iter().find(|len| *len > MOST_LISTED) {
            return Err(Refusal::out_of_range("a list", many, format!("at most {MOST_LISTED} entries")));
        }
        if let Some(both) = self.suppliers.intersection(&self.not_suppliers).next() {
            return Err(Refusal::out_of_range("not_suppliers", both, "another than those in suppliers"));
        }
        if let Some(percent) = self.min_reliability_percent.filter(|percent| !(1..=100).contains(percent)) {
            return Err(Refusal::out_of_range("min_reliability_percent", percent, "1 to 100"));
        }
        if let Some(most) = self.max_per_device.filter(|most| *most == 0 || self.spread && *most > 1) {
            return Err(Refusal::out_of_range("max_per_device", most, "at least 1, and 1 with spread"));
        }
        if !self.gpu_min.is_none() && self.per_member.gpus == 0 {
            return Err(Refusal::out_of_range("gpu_min", self.gpu_min, "absent where no GPUs are wanted"));
        }
        if self.cpu_model.as_ref().is_some_and(|model| model.is_empty() || model.len() > 200) {
            return Err(Refusal::out_of_range("cpu_model", "", "1 to 200 letters"));
        }
        if self.prefer == Some(Preference::Near) && self.near.is_none() {
            return Err(Refusal::out_of_range(
                "near",
                "absent",
                "the callers' region, to prefer what is near",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written_and_others_are_told_what_there_is() {
        for kind in WorkKind::ALL {
            assert_eq!(kind.to_string().parse::<WorkKind>().as_ref(), Ok(kind));
        }
        for prefer in Preference::ALL {
            assert_eq!(prefer.to_string().parse::<Preference>().as_ref(), Ok(prefer));
        }
        for isolation in [Isolation::Process, Isolation::Limits, Isolation::OneTenant] {
            assert_eq!(isolation.to_string().parse::<Isolation>(), Ok(isolation));
        }
        assert!("serve".parse::<WorkKind>().unwrap_err().to_string().contains("general, train, inference"));
        let refused = "vm".parse::<Isolation>().unwrap_err().to_string();
        assert!(refused.contains("microvm") && refused.contains("one-tenant"), "{refused}");
    }

    #[test]
    fn a_region_lies_in_its_own_and_in_what_its_name_begins_with() {
        for (region, wanted, is) in [
            ("us", "us", true),
            ("us-east", "us", true),
            ("us-east-1", "us-east", true),
            ("us", "us-east", false),
            ("usa", "us", false),
            ("eu", "us", false),
        ] {
            assert_eq!(region_within(region, wanted), is, "{region} in {wanted}");
        }
    }

    #[test]
    fn a_minimum_is_met_by_the_data_sheet_alone() {
        let least = |bandwidth_gb_s, fp16_gflops| GpuMinimum { bandwidth_gb_s, fp16_gflops, memory_bytes: 0 };
        let gpu = |model: &str| HardwareClass::Gpu(model.into());
        assert!(least(1500, 0).met_by(&gpu("NVIDIA A100-SXM4-80GB")));
        assert!(!least(3000, 0).met_by(&gpu("NVIDIA A100-SXM4-80GB")));
        assert!(!least(0, 90_000).met_by(&gpu("NVIDIA A100-SXM4-80GB")));
        assert!(
            !least(1, 0).met_by(&gpu("a card that nobody knows")) && !least(1, 0).met_by(&HardwareClass::Cpu)
        );
        assert!(least(0, 0).met_by(&HardwareClass::Cpu));
    }
}
