//! Guesses at what an answer will say next, from what was said before: where it copies text of the prompt or of itself,
//! several tokens are read in one pass over the weights. The model has the last word on each, so a guess costs time at worst.

use super::Session;
use super::line::Mark;
use crate::error::Result;
use crate::tokenizer::TokenId;

/// Whether tokens are guessed, and how many at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draft {
    /// None: one token a pass.
    Off,
    /// As many as pays, by how many guesses of this answer were right.
    Auto,
    /// So many wherever the text repeats, right or wrong.
    Exactly(usize),
}

impl Draft {
    /// Most tokens of a guess.
    pub fn max_tokens(self) -> usize {
        match self {
            Draft::Off => 0,
            Draft::Auto => MAX_AUTO,
            Draft::Exactly(n) => n,
        }
    }
}

/// Most tokens of an automatic guess. With the token before it a pass reads seven: from eight on ggml multiplies K-quants by
/// other kernels, which round otherwise.
const MAX_AUTO: usize = 6;

/// Tokens at the end of a text that must have occurred before it is guessed how it goes on. One is too little to tell
/// anything.
const MIN_MATCH: usize = 2;

/// Longest such end that is looked at.
const MAX_MATCH: usize = 8;

/// What a pass over the weights takes that reads so many tokens more than one, in passes that read one. On a core of a Xeon with
/// AVX-512 VNNI, weights coming from memory, seven columns of K-quants took 2.3 to 3.1 times as long as one with our kernels
/// (`kernels::multiplies_few_columns`); with ggml's, as elsewhere, 4.3 to 6.2 times, for which guessing is off unless asked for.
/// Fixed, although machines differ: what is read together shall not depend on the clock, since it decides how sums are rounded.
const COSTS: [f64; MAX_AUTO + 1] = [1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5];

/// Chance that a guessed token is right, before anything is known about it.
const FIRST_CHANCE: f64 = 0.5;
/// How much of a chance is what was seen last.
const NEWS: f64 = 0.2;
/// How much of it is forgotten, so that it is tried again, each time that no guess seems worth it.
const RECOVERY: f64 = 0.01;

/// Guesses for one answer, and how good they were.
#[derive(Debug)]
pub struct Drafter {
    draft: Draft,
    /// Chance that the next token of a guess is right if those before it are, after matches of 2, of 3, and of more tokens.
    chances: [f64; 3],
    /// Which of the chances the last guess was made with.
    kind: usize,
    /// How many of its tokens are not proven yet.
    n_open: usize,
    n_drafted: usize,
    n_accepted: usize,
}

impl Drafter {
    /// One that has not guessed yet.
    pub fn new(draft: Draft) -> Self {
        Drafter { draft, chances: [FIRST_CHANCE; 3], kind: 0, n_open: 0, n_drafted: 0, n_accepted: 0 }
    }

    /// Lets `session` read one more token, and in the same pass what may come behind it: at most `n_max` tokens, none of them
    /// one of `ends`. Where it was guessed before, it is there already. Errors: as [`Session::push`].
    pub fn push(&mut self, session: &mut Session<'_>, id: TokenId, n_max: usize, ends: &[TokenId]) -> Result<()> {
        if session.go_ahead(id) {
            self.accepted();
            return Ok(());
        }
        let guess = self.guess(session.read(), id, n_max);
        let n = guess.iter().take_while(|id| !ends.contains(id)).count();
        self.drafted(session.push_ahead(id, &guess[..n])?);
        Ok(())
    }

    /// What may come behind the text `read` and then `id`, at most `n_max` tokens; what is left of the guess before was
    /// wrong. Cost: looks at every position once (10 µs for 8192).
    fn guess(&mut self, read: &[Mark], id: TokenId, n_max: usize) -> Vec<TokenId> {
        if self.n_open > 0 {
            self.learn(0.0);
            self.n_open = 0;
        }
        let n_max = n_max.min(self.draft.max_tokens());
        let Some((n_same, mut guess)) = continuation(read, id, n_max) else { return Vec::new() };
        self.kind = (n_same - MIN_MATCH).min(self.chances.len() - 1);
        if self.draft == Draft::Auto {
            let chance = &mut self.chances[self.kind];
            guess.truncate(n_worth(*chance));
            if guess.is_empty() {
                *chance += (FIRST_CHANCE - *chance) * RECOVERY;
            }
        }
        guess
    }

    /// So many tokens of the guess were read ahead.
    fn drafted(&mut self, n: usize) {
        self.n_open = n;
        self.n_drafted += n;
    }

    /// The next of them was right.
    fn accepted(&mut self) {
        self.n_open = self.n_open.saturating_sub(1);
        self.n_accepted += 1;
        self.learn(1.0);
    }

    /// Tokens that were read ahead so far.
    pub fn n_drafted(&self) -> usize {
        self.n_drafted
    }

    /// Those among them that were right.
    pub fn n_accepted(&self) -> usize {
        self.n_accepted
    }

    fn learn(&mut self, right: f64) {
        let chance = &mut self.chances[self.kind];
        *chance += (right - *chance) * NEWS;
    }
}

/// How many tokens to guess for the most tokens a time: a pass that guesses k gives 1 + p + .. + p^k of them, if each is right
/// with chance p.
fn n_worth(chance: f64) -> usize {
    let mut best = (0, 1.0);
    let (mut gain, mut all_right) = (1.0, 1.0);
    for (n, cost) in COSTS.iter().enumerate().skip(1) {
        all_right *= chance;
        gain += all_right;
        if gain / cost > best.1 {
            best = (n, gain / cost);
        }
    }
    best.0
}

/// How the text `read` and then `id` may go on: as it did after the longest of its ends that occurred before, the latest
/// of equally long ones; at most `n_max` tokens. Returns the length of that end, too. Rows of pictures are no tokens: they are
/// never equal, and end what can be guessed. Cost: looks at every position once (10 µs for 8192).
fn continuation(read: &[Mark], id: TokenId, n_max: usize) -> Option<(usize, Vec<TokenId>)> {
    let token = |i: usize| match read.get(i) {
        Some(Mark::Token(id)) => Some(*id),
        Some(Mark::Row(..)) => None,
        None => Some(id),
    };
    let end = read.len();
    let n_same = |at: usize| {
        let same = |k: &usize| token(at - k).is_some_and(|id| Some(id) == token(end - k));
        (0..=at.min(MAX_MATCH - 1)).take_while(same).count()
    };
    let mut best = (MIN_MATCH - 1, None);
    for at in (0..end).rev() {
        let n = n_same(at);
        if n > best.0 && token(at + 1).is_some() {
            best = (n, Some(at));
        }
        if n == MAX_MATCH {
            break;
        }
    }
    let at = best.1?;
    let mut guess: Vec<TokenId> = Vec::with_capacity(n_max);
    for i in at + 1..=at + n_max {
        // Behind the text itself the guess goes on with its own beginning, as a text that repeats itself does.
        match if i <= end { token(i) } else { guess.get(i - end - 1).copied() } {
            Some(id) => guess.push(id),
            None => break,
        }
    }
    (!guess.is_empty()).then_some((best.0, guess))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A letter is a token, `#` a row of one picture.
    fn marks(text: &str) -> Vec<Mark> {
        let mark = |c: char| if c == '#' { Mark::Row([7; 32], 0) } else { Mark::Token(TokenId(c as u32)) };
        text.chars().map(mark).collect()
    }

    /// How `text` may go on.
    fn check(text: &str, n_max: usize, expect: Option<(usize, &str)>) {
        let (last, read) = text.as_bytes().split_last().expect("a text");
        let read = marks(std::str::from_utf8(read).expect("ascii"));
        let found = continuation(&read, TokenId(u32::from(*last)), n_max);
        let letters = |ids: Vec<TokenId>| ids.iter().filter_map(|id| char::from_u32(id.0)).collect::<String>();
        let found = found.map(|(n, ids)| (n, letters(ids)));
        assert_eq!(found, expect.map(|(n, guess)| (n, guess.to_owned())), "{text}");
    }

    #[test]
    fn a_text_goes_on_as_it_did() {
        check("abcdefabc", 3, Some((3, "def")));
        check("abcdefabc", 1, Some((3, "d")));
        check("abcdefabc", 0, None);
        // The latest of equally long ones, the longest of all.
        check("abXabYab", 3, Some((2, "Yab")));
        check("cabXabYcab", 3, Some((3, "Xab")));
        // Nothing occurred before, or one token only, or it is at the beginning.
        check("a", 3, None);
        check("abcd", 3, None);
        check("bXYb", 3, None);
        check("abXab", 3, Some((2, "Xab")));
    }

    #[test]
    fn a_loop_goes_on_for_ever() {
        check("xabababa", 7, Some((5, "bababab")));
        check("xaaaa", 5, Some((3, "aaaaa")));
        check("0123456789-0123456789-", 4, Some((MAX_MATCH, "0123")));
    }

    #[test]
    fn rows_of_pictures_are_never_equal_and_never_guessed() {
        check("a#bXa#b", 3, None);
        check("ab#cdab", 3, None);
        check("abc#dabc", 3, None);
        check("abcd#eabc", 3, Some((3, "d")));
    }

    #[test]
    fn as_many_are_guessed_as_pay() {
        assert_eq!((n_worth(0.0), n_worth(0.05)), (0, 0));
        assert_eq!(n_worth(1.0), MAX_AUTO);
        let all: Vec<usize> = (0..=100).map(|p| n_worth(f64::from(p) / 100.0)).collect();
        assert!(all.is_sorted(), "{all:?}");
    }

    /// Passes that an answer takes, by their costs, for each of its tokens.
    fn cost(prompt: &[u32], answer: &[u32]) -> f64 {
        let mut read: Vec<Mark> = prompt.iter().map(|id| Mark::Token(TokenId(*id))).collect();
        let mut drafter = Drafter::new(Draft::Auto);
        let (mut cost, mut ahead) = (0.0, std::collections::VecDeque::new());
        for id in answer.iter().map(|id| TokenId(*id)) {
            if ahead.pop_front() == Some(id) {
                drafter.accepted();
            } else {
                ahead = drafter.guess(&read, id, usize::MAX).into();
                drafter.drafted(ahead.len());
                cost += COSTS[ahead.len()];
            }
            read.push(Mark::Token(id));
        }
        cost / answer.len() as f64
    }

    #[test]
    fn a_copy_takes_less_than_half_the_time_and_a_text_that_only_seems_to_be_one_hardly_longer() {
        let noise = |n_ids: u32, seed: u32| {
            let mut x = seed;
            let mut next = move || {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 16) % n_ids
            };
            (0..600).map(move |_| next()).collect::<Vec<u32>>()
        };
        let text = noise(50_000, 1);
        let copy = cost(&text, &text[100..400]);
        assert!(copy < 0.4, "{copy}");
        // Nothing repeats itself: nothing is guessed.
        assert_eq!(cost(&text, &noise(50_000, 2)), 1.0);
        // Two tokens always occurred before, and say nothing about the third.
        let wrong = cost(&noise(10, 3), &noise(10, 4));
        assert!(wrong > 1.0 && wrong < 1.03, "{wrong}");
        // Numbers that nobody can know in a frame that is always the same, as boxes are.
        let boxes: Vec<u32> = noise(1000, 5).iter().flat_map(|x| [2000, 2001, 2002, *x, 2003, 2004]).collect();
        assert!(cost(&[], &boxes) < 0.7, "{}", cost(&[], &boxes));
    }
}
