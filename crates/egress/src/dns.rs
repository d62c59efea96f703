//! DNS messages, as far as rules need them: the one question, the addresses answered and for how long, and a refusal.
//!
//! Pure. Always holds: nothing is read beyond the message; what has not exactly one question is not read at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ionet_domain::market::egress::normal_name;

const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const MAX_NAME_BYTES: usize = 255;
const RESPONSE: u8 = 0x80;
const RECURSION_AVAILABLE: u8 = 0x80;

/// How a question is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum No {
    /// Rules forbid it.
    Refused = 5,
    /// No name server answered.
    ServerFailure = 2,
}

/// A question: who asks decides what its number is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) id: u16,
    /// In lower case, without the trailing dot; empty for the root or where it is no host's name.
    pub(crate) name: String,
    /// Header and question alone, as bytes.
    end: usize,
}

/// Reads a query. `None` for what is none or has not one question.
pub(crate) fn question(message: &[u8]) -> Option<Question> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    let asks = header[2] & RESPONSE == 0 && header[4..6] == [0, 1];
    asks.then(|| read_question(message))?
}

fn read_question(message: &[u8]) -> Option<Question> {
    let mut at = HEADER;
    let mut name = String::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => {
                let label = message.get(at..at + length)?;
                name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
                name.push('.');
                at += length;
            }
            // A question has nothing before it to point at.
            _ => return None,
        }
        if name.len() > MAX_NAME_BYTES {
            return None;
        }
    }
    let end = at.checked_add(4).filter(|end| *end <= message.len())?;
    let id = u16::from_be_bytes([message[0], message[1]]);
    Some(Question { id, name: normal_name(&name).unwrap_or_default(), end })
}

/// The answer to a question that nobody is asked.
pub(crate) fn refusal(query: &[u8], question: &Question, no: No) -> Vec<u8> {
    let mut answer = query[..question.end].to_vec();
    answer[2] |= RESPONSE;
    answer[3] = RECURSION_AVAILABLE | no as u8;
    // No answer, no authority, nothing additional.
    answer[6..HEADER].fill(0);
    answer
}

/// The addresses that a response to `question` holds, each with its time to live in seconds. `None` if it answers
/// another question.
pub(crate) fn answers(question: &Question, response: &[u8]) -> Option<Vec<(IpAddr, u32)>> {
    let header: &[u8; HEADER] = response.first_chunk()?;
    if header[2] & RESPONSE == 0 || header[4..6] != [0, 1] {
        return None;
    }
    let asked = read_question(response)?;
    if (asked.id, &asked.name) != (question.id, &question.name) {
        return None;
    }
    let count = u16::from_be_bytes([header[6], header[7]]);
    let (mut at, mut found) = (asked.end, Vec::new());
    for _ in 0..count {
        // A damaged rest is the box's own business; what came before it counts.
        let Some((address, next)) = record(response, at) else { break };
        found.extend(address);
        at = next;
    }
    Some(found)
}

/// The record at `at`: its address, if it has one, and where the next begins.
fn record(message: &[u8], at: usize) -> Option<(Option<(IpAddr, u32)>, usize)> {
    let at = skip_name(message, at)?;
    let fixed: &[u8; 10] = message.get(at..)?.first_chunk()?;
    let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
    let ttl = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
    let end = at + 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let data = message.get(at + 10..end)?;
    let address = match (kind, data.len()) {
        (A, 4) => data.first_chunk::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
        (AAAA, 16) => data.first_chunk::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))),
        _ => None,
    };
    Some((address.map(|address| (address, ttl)), end))
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.bytes());
        }
        message.extend([0, 0, 1, 0, 1]);
        message
    }

    /// An alias, then an address of each kind.
    fn response(name: &str) -> Vec<u8> {
        let mut message = query(name);
        message[2] |= RESPONSE;
        message[7] = 3;
        message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 203, 0, 113, 9]);
        message.extend([1, b'x', 0, 0, 28, 0, 1, 0, 0, 1, 0, 0, 16]);
        message.extend("2001:db8::9".parse::<Ipv6Addr>().unwrap().octets());
        message
    }

    #[test]
    fn a_question_is_read_and_turned_away() {
        let query = query("WWW.Example.org");
        let asked = question(&query).unwrap();
        assert_eq!((asked.id, asked.name.as_str()), (0xabcd, "www.example.org"));
        let refused = refusal(&query, &asked, No::Refused);
        assert_eq!((refused.len(), refused[3] & 15), (query.len(), 5));
        assert_eq!(answers(&asked, &refused), Some(vec![]));
        assert_eq!(question(&refused), None, "a response asks nothing");
    }

    #[test]
    fn addresses_come_with_their_time() {
        let asked = question(&query("a.org")).unwrap();
        let found = answers(&asked, &response("a.org")).unwrap();
        let expected = [("203.0.113.9", 30), ("2001:db8::9", 256)];
        assert_eq!(found, expected.map(|(ip, ttl)| (ip.parse().unwrap(), ttl)));
        assert_eq!(answers(&asked, &response("b.org")), None);
        let mut cut = response("a.org");
        cut.truncate(cut.len() - 1);
        assert_eq!(answers(&asked, &cut).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..300), response in any::<bool>()) {
            let mut bytes = bytes;
            if bytes.len() > HEADER {
                bytes[2] = if response { RESPONSE } else { 0 };
                bytes[4..6].copy_from_slice(&[0, 1]);
            }
            if let Some(asked) = question(&bytes) {
                let _ = refusal(&bytes, &asked, No::ServerFailure);
            }
            let asked = question(&query("a.org")).unwrap();
            let _ = answers(&asked, &bytes);
        }
    }
}
