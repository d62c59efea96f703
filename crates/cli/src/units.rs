//! Sizes, times and money: from people's words to integers and back.

use ionet_domain::money::decimal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Splits `4GiB` into the number in thousandths and the unit.
fn amount(text: &str) -> Result<(u64, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let wrong = || format!("'{text}' does not begin with a number such as 2 or 0.5");
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 3 {
        return Err(wrong());
    }
    let thousandths = format!("{whole}{fraction:0<3}").parse().map_err(|_| wrong())?;
    Ok((thousandths, unit.trim()))
}

fn scale(text: &str, units: &[(&str, u64)], expected: &str) -> Result<u64, String> {
    let (thousandths, unit) = amount(text)?;
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor);
    let factor = factor.ok_or_else(|| format!("'{text}' has no known unit; write {expected}"))?;
    thousandths.checked_mul(factor).map(|n| n / 1000).ok_or_else(|| format!("'{text}' is too large"))
}

/// `4GiB`, `512MiB`, `1.5GiB`, or plain bytes.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    scale(text, &UNITS, "KiB, MiB, GiB or TiB")
}

/// `90m`, `2h`, `1d`, `30s`, `1w`.
pub(crate) fn parse_duration_ms(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 6] =
        [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];
    scale(text, &UNITS, "s, m, h, d or w, such as 90m")
}

/// A moment, or a stretch of time from now: `2026-11-30T08:00:00Z`, `12h`; in milliseconds since 1970.
pub(crate) fn parse_when_ms(text: &str) -> Result<u64, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        let ms = at.unix_timestamp_nanos() / 1_000_000;
        return u64::try_from(ms).map_err(|_| format!("'{text}' is before 1970"));
    }
    let in_ms = parse_duration_ms(text)
        .map_err(|_| format!("'{text}' is no time; write 2026-11-30T08:00:00Z, or 12h for then from now"))?;
    Ok(crate::context::now_ms().saturating_add(in_ms))
}

/// CPU threads to thousandths.
pub(crate) fn parse_cpus(text: &str) -> Result<u32, String> {
    match amount(text)? {
        (thousandths, "") => u32::try_from(thousandths).map_err(|_| format!("'{text}' is too large")),
        _ => Err(format!("'{text}' is not a number of CPU threads")),
    }
}

/// Micro-USD as dollars, exact.
pub(crate) fn usd(micro_usd: u64) -> String {
    format!("${}", decimal(micro_usd, 6))
}

/// Bytes in the largest unit that fits, one digit after the point.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

/// Bits a second, decimal, as network people say it.
pub(crate) fn rate(bits_per_second: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1_000)];
    match UNITS.iter().find(|(_, unit)| bits_per_second >= *unit) {
        Some((name, unit)) => {
            let tenths = u128::from(bits_per_second) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bits_per_second} bit/s"),
    }
}

/// Thousandths of a CPU thread as a number of threads.
pub(crate) fn cpus(millis: u32) -> String {
    match millis % 1000 {
        0 => (millis / 1000).to_string(),
        part => format!("{}.{part:03}", millis / 1000).trim_end_matches('0').to_owned(),
    }
}

/// A stretch of time as people say it.
pub(crate) fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => two(ms / 60_000, "m", ms % 60_000 / 1000, "s"),
        3_600_000..86_400_000 => two(ms / 3_600_000, "h", ms % 3_600_000 / 60_000, "m"),
        _ => two(ms / 86_400_000, "d", ms % 86_400_000 / 3_600_000, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small}{small_unit}"),
    }
}

/// A moment in UTC, to the second.
pub(crate) fn moment(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    let text = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|at| at.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{ms} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_integers() {
        for (text, bytes) in [("512", 512), ("4GiB", 4 << 30), ("1.5gib", 3 << 29), ("2 MB", 2_000_000)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for (text, ms) in [("90m", 5_400_000), ("2h", 7_200_000), ("1.5d", 129_600_000), ("250ms", 250)] {
            assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "h", "-1h", "1", "1y", "1.2345h", "99999999999999999999w", "18446744073709551w"] {
            assert!(parse_duration_ms(text).is_err(), "{text}");
        }
        assert_eq!(parse_cpus("0.5"), Ok(500));
        assert!(parse_cpus("1x").is_err());
    }

    #[test]
    fn integers_become_words() {
        for (ms, text) in [(7, "7 ms"), (1_250, "1.2 s"), (90_000, "1m 30s"), (7_200_000, "2h")] {
            assert_eq!(span(ms), text);
        }
        assert_eq!(bytes(4 << 30), "4 GiB");
        assert_eq!(bytes(1_500_000_000), "1.3 GiB");
        assert_eq!((rate(0), rate(940_200_000)), ("0 bit/s".into(), "940.2 Mbit/s".into()));
        assert_eq!(cpus(500), "0.5");
        assert_eq!(cpus(2000), "2");
        assert_eq!(usd(41_250), "$0.04125");
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
    }
}
