//! What is done for a cluster while it lives, as its renter asked: how long it may pause, whether ailing members are replaced
//! without asking, and between how many members it scales.
//!
//! Not here: when a member ails (`order::health`), when a cluster scales (`order::scale`), who carries it out (`ionet-server`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::request::{MAX_MEMBERS, MIN_DURATION_MS, Request};
use crate::money::{HOUR_MS, Rate};
use crate::refusal::Refusal;

/// How long a cluster may be paused where its request does not say.
pub const PAUSE_MOST_MS: u64 = 30 * 24 * HOUR_MS;
/// The longest pause that can be asked for.
const PAUSE_LONGEST_MS: u64 = 366 * 24 * HOUR_MS;
/// Between these, in percent, a target leaves room to scale in both directions.
const TARGET_PERCENT: (u8, u8) = (10, 95);

/// What is done with a member that ails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplaceMode {
    /// Its replacement is proposed; the renter decides.
    #[default]
    Proposed,
    /// It is replaced without asking, at most so often.
    ByItself,
}

impl fmt::Display for ReplaceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proposed => "proposed",
            Self::ByItself => "by_itself",
        })
    }
}

impl FromStr for ReplaceMode {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "proposed" => Ok(Self::Proposed),
            "by_itself" | "by-itself" => Ok(Self::ByItself),
            _ => Err(Refusal::out_of_range("replace", text, "proposed or by_itself")),
        }
    }
}

crate::id::serde_as_text!(ReplaceMode);

/// What scaling goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// How busy the members' CPU threads are.
    Cpu,
    /// How busy their GPUs are.
    Gpu,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        })
    }
}

impl FromStr for Metric {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu),
            _ => Err(Refusal::out_of_range("metric", text, "cpu or gpu")),
        }
    }
}

crate::id::serde_as_text!(Metric);

/// Between how many members a cluster scales, and by what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Never fewer members.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// What is looked at.
    pub metric: Metric,
    /// The use of all members together that is aimed at, in percent.
    pub target_percent: u8,
    /// The most that all members together may cost an hour, before fees; without it the request's own cap counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<Rate>,
}

/// What is done for a cluster while it lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upkeep {
    /// How long it may be paused before it is closed, in milliseconds; 30 days if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pause_ms: Option<u64>,
    /// What is done with a member that ails.
    #[serde(skip_serializing_if = "is_proposed")]
    pub replace: ReplaceMode,
    /// Members are added and taken away by how busy they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_proposed(mode: &ReplaceMode) -> bool {
    *mode == ReplaceMode::Proposed
}

impl Upkeep {
    /// Whether nothing is asked for.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// How long a pause may last, in milliseconds.
    pub fn pause_most_ms(&self) -> u64 {
        self.max_pause_ms.unwrap_or(PAUSE_MOST_MS)
    }

    /// Whether it makes sense for this request.
    ///
    /// # Errors
    /// `OutOfRange` with the field.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        let pause_ms = self.pause_most_ms();
        if !(MIN_DURATION_MS..=PAUSE_LONGEST_MS).contains(&pause_ms) {
            let limit = format!("{MIN_DURATION_MS} to {PAUSE_LONGEST_MS}");
            return Err(Refusal::out_of_range("max_pause_ms", pause_ms, limit));
        }
        let Some(scale) = &self.scale else { return Ok(()) };
        if scale.min == 0 || scale.min > scale.max || scale.max > MAX_MEMBERS {
            let limit = format!("at least 1, min not above max, max at most {MAX_MEMBERS}");
            return Err(Refusal::out_of_range("scale", format!("{}..{}", scale.min, scale.max), limit));
        }
        let (least, most) = TARGET_PERCENT;
        if !(least..=most).contains(&scale.target_percent) {
            let limit = format!("{least} to {most}");
            return Err(Refusal::out_of_range("scale.target_percent", scale.target_percent, limit));
        }
        if scale.metric == Metric::Gpu && request.per_member.gpus == 0 {
            return Err(Refusal::out_of_range("scale.metric", "gpu", "cpu where members have no GPUs"));
        }
        Ok(())
    }
}
