//! What the NAT before us does, by what several relays' ports see of one socket, and which ports a peer's NAT may use
//! next.

use std::net::SocketAddr;

use crate::control::{Candidates, Mapping};

/// A port may be this far from the one before to be called a step.
const MOST_STEP: i32 = 16;
/// How many ports ahead of the last one seen are tried.
const GUESSES: i32 = 24;

/// What one socket was seen as, by whom, in the order of the questions.
#[derive(Debug, Default)]
pub(crate) struct Seen(Vec<(SocketAddr, SocketAddr)>);

impl Seen {
    /// `by` sees us from `seen`. Whether that is news.
    pub(crate) fn note(&mut self, by: SocketAddr, seen: SocketAddr) -> bool {
        let is_news = !self.0.contains(&(by, seen));
        self.0.retain(|(other, _)| *other != by);
        self.0.push((by, seen));
        is_news
    }

    /// `by` does not answer any more, or we are elsewhere.
    pub(crate) fn forget(&mut self, by: SocketAddr) {
        self.0.retain(|(other, _)| *other != by);
    }

    /// The addresses seen, the newest first, each once.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for (_, seen) in self.0.iter().rev() {
            if !addresses.contains(seen) {
                addresses.push(*seen);
            }
        }
        addresses
    }

    /// What the NAT does with ports. Answers overtake each other, so their order says little.
    pub(crate) fn mapping(&self) -> Mapping {
        let v4 = self.0.iter().filter(|(by, _)| by.is_ipv4());
        let mut ports: Vec<i32> = v4.map(|(_, seen)| i32::from(seen.port())).collect();
        let falls = ports.len() > 2 && ports.is_sorted_by(|before, after| before > after);
        ports.sort_unstable();
        let steps: Vec<i32> = ports.windows(2).map(|pair| pair[1] - pair[0]).collect();
        match steps.as_slice() {
            [] => Mapping::Unknown,
            steps if steps.iter().all(|step| *step == 0) => Mapping::Independent,
            steps if steps.iter().all(|step| (1..=MOST_STEP).contains(step)) => stepping(steps, falls),
            _ => Mapping::Random,
        }
    }
}

/// The smallest step; larger ones were others' doing in between.
fn stepping(steps: &[i32], falls: bool) -> Mapping {
    let least = steps.iter().copied().min().unwrap_or(1);
    Mapping::Stepping(i8::try_from(if falls { -least } else { least }).unwrap_or(1))
}

/// The addresses that a peer behind such a NAT may get next.
pub(crate) fn guesses(theirs: &Candidates) -> Vec<SocketAddr> {
    let Mapping::Stepping(step) = theirs.mapping else { return Vec::new() };
    let v4 = || theirs.seen.iter().filter(|seen| seen.is_ipv4());
    let last =
        if step > 0 { v4().max_by_key(|seen| seen.port()) } else { v4().min_by_key(|seen| seen.port()) };
    let Some(last) = last else { return Vec::new() };
    let ports =
        (1..=GUESSES).filter_map(|n| u16::try_from(i32::from(last.port()) + n * i32::from(step)).ok());
    ports.filter(|port| *port > 1023).map(|port| SocketAddr::new(last.ip(), port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 1], port))
    }

    #[test]
    fn a_nat_is_known_by_the_ports_it_gives() {
        let mapping = |ports: &[u16]| {
            let mut seen = Seen::default();
            for (n, port) in (1..).zip(ports) {
                seen.note(SocketAddr::from(([198, 51, 100, n], 1)), at(*port));
            }
            seen.mapping()
        };
        assert_eq!(mapping(&[]), Mapping::Unknown);
        assert_eq!(mapping(&[5000]), Mapping::Unknown);
        assert_eq!(mapping(&[5000, 5000, 5000]), Mapping::Independent);
        assert_eq!(mapping(&[5000, 5001, 5003]), Mapping::Stepping(1));
        assert_eq!(mapping(&[5000, 4998, 4996]), Mapping::Stepping(-2));
        assert_eq!(mapping(&[5000, 61000, 1200]), Mapping::Random);
    }

    #[test]
    fn the_newest_address_is_first_and_each_is_once() {
        let mut seen = Seen::default();
        let by = |n| SocketAddr::from(([198, 51, 100, n], 1));
        assert!(seen.note(by(1), at(1)) && seen.note(by(2), at(2)) && !seen.note(by(2), at(2)));
        assert!(seen.note(by(1), at(3)));
        assert_eq!(seen.addresses(), [at(3), at(2)]);
        seen.forget(by(1));
        assert_eq!(seen.addresses(), [at(2)]);
    }

    #[test]
    fn guesses_stay_within_the_ports_there_are() {
        let theirs = |step, port| Candidates {
            mapping: Mapping::Stepping(step),
            seen: vec![at(port)],
            ..Candidates::default()
        };
        assert_eq!(guesses(&theirs(2, 5000))[..2], [at(5002), at(5004)]);
        assert_eq!(guesses(&theirs(1, 65_530)).len(), 5);
        assert_eq!(guesses(&theirs(-1, 1030)).len(), 6);
        assert_eq!(guesses(&Candidates::default()), []);
    }
}
