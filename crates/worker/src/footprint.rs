//! Keeps a supervisor small: what of the program was only needed to start is let go.
//!
//! The product is one large binary, and the kernel counts every page of it that was ever touched. Pages of code and
//! constants are copies of the file: the kernel reads them again when they are wanted. Always holds: only mappings that
//! no one can have written to are touched.

use std::fs;

use rustix::mm::{Advice, madvise};

/// Gives back the pages of the program's own code and constants; those in use come back by themselves.
pub(crate) fn let_go() {
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = program.to_string_lossy();
    for (start, length) in maps.lines().filter_map(|line| unwritten(line, &program)) {
        // SAFETY: the range is one mapping of our own executable that is private and never was writable (see
        // `unwritten`), so its content is the file's, which the kernel does not let anyone write to while it runs.
        // Dropping the pages loses nothing: the next access reads them again.
        let _ = unsafe { madvise(start as *mut _, length, Advice::LinuxDontNeed) };
    }
}

/// Start and length of a line of `/proc/self/maps` if it maps the program's code, or the constants at its beginning.
/// Constants further on may be relocated ones, which are no copy of the file.
fn unwritten(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut words = line.split_whitespace();
    let (range, rights, offset) = (words.next()?, words.next()?, words.next()?);
    let of_program = line.ends_with(program);
    let is_file = rights == "r-xp" || (rights == "r--p" && offset.bytes().all(|digit| digit == b'0'));
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let length = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    (of_program && is_file).then_some((start, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_one_writes_is_let_go() {
        for (line, expected) in [
            ("1000-3000 r--p 00000000 08:01 7   /bin/x", Some((0x1000, 0x2000))),
            ("3000-4000 r-xp 00002000 08:01 7   /bin/x", Some((0x3000, 0x1000))),
            ("4000-5000 r--p 00003000 08:01 7   /bin/x", None),
            ("5000-6000 rw-p 00004000 08:01 7   /bin/x", None),
            ("6000-7000 r-xp 00000000 08:01 9   /lib/y", None),
            ("nonsense", None),
        ] {
            assert_eq!(unwritten(line, "/bin/x"), expected, "{line}");
        }
        let_go();
        assert_eq!("still here".len(), 10);
    }
}
