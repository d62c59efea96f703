//! Which counters were seen: a ring of bits behind the highest one.

/// How far behind the highest counter one still passes.
pub const WINDOW: u64 = 8192;
/// Twice the window, so that clearing whole words ahead never touches what is still in it.
const WORDS: usize = 256;

/// The counters seen of one key.
#[derive(Clone, Debug)]
pub struct Window {
    /// One above the highest counter seen.
    next: u64,
    words: Box<[u64; WORDS]>,
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, words: Box::new([0; WORDS]) }
    }
}

impl Window {
    /// Whether a counter was not seen and is not too old to tell.
    pub fn is_fresh(&self, counter: u64) -> bool {
        counter >= self.next
            || (self.next - counter <= WINDOW && self.words[word(counter)] & bit(counter) == 0)
    }

    /// Notes a counter, which must be fresh and below 2^63.
    pub fn mark(&mut self, counter: u64) {
        if counter >= self.next {
            let last = self.next.saturating_sub(1) / 64;
            let ahead = (counter / 64 - last).min(WORDS as u64);
            for step in 1..=ahead {
                self.words[word((last + step) * 64)] = 0;
            }
            self.next = counter + 1;
        }
        self.words[word(counter)] |= bit(counter);
    }
}

fn word(counter: u64) -> usize {
    usize::try_from(counter / 64 % WORDS as u64).unwrap_or(0)
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}
