//! What a cluster's network hides beyond what is said in it, which is always hidden. What each costs is
//! `docs/network.md`.

use std::fmt;
use std::str::FromStr;

use crate::refusal::Refusal;

/// What is hidden. Written as its words with `+` between them, such as `private+via-relay`; `none` for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hiding {
    /// Sizes of packets, and to a degree their times: all packets are of one size, and there is cover.
    pub private: bool,
    /// Members' addresses from each other: packets go over relays.
    pub via_relay: bool,
    /// The whole of a pair's traffic from each relay: packets go over two in turn.
    pub split_relays: bool,
}

impl Hiding {
    /// Whether nothing is hidden, which is left out of what is written.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the parts belong together, with what is wrong if not.
    pub fn check(self) -> Result<(), Refusal> {
        if self.split_relays && !self.via_relay {
            return Err(Refusal::out_of_range("hiding", self, "split-relays together with via-relay"));
        }
        Ok(())
    }

    /// What each part hides and costs, a line each.
    pub fn explained(self) -> impl Iterator<Item = &'static str> {
        [
            (self.private, "private: sizes, and times of little traffic, are hidden; costs 0.6 Mbit/s to each peer, and up to 20 ms"),
            (self.via_relay, "via-relay: members do not see each other's addresses; costs the way over a relay"),
            (self.split_relays, "split-relays: a relay sees half of what passes; costs some throughput"),
        ]
        .into_iter()
        .filter_map(|(is_chosen, line)| is_chosen.then_some(line))
    }
}

impl fmt::Display for Hiding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words =
            [(self.private, "private"), (self.via_relay, "via-relay"), (self.split_relays, "split-relays")];
        let chosen: Vec<_> =
            words.into_iter().filter_map(|(is_chosen, word)| is_chosen.then_some(word)).collect();
        if chosen.is_empty() { f.write_str("none") } else { f.write_str(&chosen.join("+")) }
    }
}

impl FromStr for Hiding {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let mut hiding = Self::default();
        for word in text.split('+').filter(|_| text != "none") {
            match word {
                "private" => hiding.private = true,
                "via-relay" => hiding.via_relay = true,
                "split-relays" => hiding.split_relays = true,
                _ => {
                    let shown: String = text.chars().take(60).collect();
                    let most = "none, or private, via-relay and split-relays with + between them";
                    return Err(Refusal::out_of_range("hiding", shown, most));
                }
            }
        }
        Ok(hiding)
    }
}

crate::id::serde_as_text!(Hiding);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (text, parts) in [
            ("none", [false, false, false]),
            ("private", [true, false, false]),
            ("via-relay+split-relays", [false, true, true]),
            ("private+via-relay+split-relays", [true, true, true]),
        ] {
            let [private, via_relay, split_relays] = parts;
            let hiding = Hiding { private, via_relay, split_relays };
            assert_eq!(hiding.to_string(), text);
            assert_eq!(text.parse::<Hiding>().unwrap(), hiding);
            assert_eq!(hiding.explained().count(), parts.iter().filter(|part| **part).count());
        }
        assert!("".parse::<Hiding>().is_err() && "private+tor".parse::<Hiding>().is_err());
        assert!("split-relays".parse::<Hiding>().unwrap().check().is_err());
    }
}
