//! The merge learner of byte-pair encoding, deterministic by construction.
//!
//! The trainer of the `tokenizers` crate keeps its work in randomly seeded hash maps and counts in 32 bits; whether
//! two runs agree on ties is nowhere promised. Here the next merge is the most frequent pair and, among equals, the
//! pair with the smallest ids: a total order that no map iteration can reach. It also lets a word be forced into one
//! token, which the crate's trainer cannot.
//!
//! Source of the algorithm: Sennrich, Haddow and Birch 2016, section 3.2.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

/// Two adjacent symbols, by id.
pub(crate) type Pair = (u32, u32);

/// A word of the corpus as its current symbols.
struct Word {
    symbols: Vec<u32>,
    /// How often it occurs; 0 for a word that is only required to exist.
    num_occurrences: u64,
}

/// Learns merges over a fixed list of words.
pub(crate) struct MergeLearner {
    /// Token texts by id, alphabet first.
    tokens: Vec<String>,
    id_of: HashMap<String, u32>,
    merges: Vec<Pair>,
    words: Vec<Word>,
    pair_counts: HashMap<Pair, u64>,
    /// Words in which a pair occurs or once occurred.
    pair_words: HashMap<Pair, BTreeSet<usize>>,
    /// Candidates, most frequent first, then smallest ids first. Counts may be out of date; see `most_frequent`.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl MergeLearner {
    /// A learner over `words` (text, occurrences), whose characters all are in `alphabet`. Token ids are the
    /// positions in `alphabet`.
    pub(crate) fn new(alphabet: &[char], words: &[(String, u64)]) -> Self {
        let tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
        let id_of: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        let words = words.iter().map(|(text, num_occurrences)| Word {
            symbols: text.chars().map(|c| id_of[c.encode_utf8(&mut [0; 4]) as &str]).collect(),
            num_occurrences: *num_occurrences,
        });
        let mut learner = Self {
            words: words.collect(),
            tokens,
            id_of,
            merges: Vec::new(),
            pair_counts: HashMap::new(),
            pair_words: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for word_idx in 0..learner.words.len() {
            learner.count_pairs_of(word_idx);
        }
        learner
    }

    /// Merges the most frequent pairs until there are `max_tokens` tokens or no pair occurs `min_frequency` times.
    pub(crate) fn learn(&mut self, max_tokens: usize, min_frequency: u64) {
        while self.tokens.len() < max_tokens
            && let Some(pair) = self.most_frequent(min_frequency)
        {
            self.merge(pair);
        }
    }

    /// Adds the merges that make the word at `word_idx` one token, from its left end on. Merges that exist already
    /// come first when text is encoded, so the word's present symbols are where the new merges start.
    pub(crate) fn force_one_token(&mut self, word_idx: usize) {
        while let [first, second, ..] = self.words[word_idx].symbols[..] {
            self.merge((first, second));
        }
    }

    /// Token texts by id, and merges in order of rank.
    pub(crate) fn into_parts(self) -> (Vec<String>, Vec<Pair>) {
        (self.tokens, self.merges)
    }

    fn most_frequent(&mut self, min_frequency: u64) -> Option<Pair> {
        while let Some((queued_count, Reverse(pair))) = self.queue.pop() {
            let count = self.pair_counts.get(&pair).copied().unwrap_or(0);
            if count < min_frequency {
                continue;
            }
            if count == queued_count {
                return Some(pair);
            }
            // Other merges took occurrences away since this entry was queued. (Added ones are queued when added.)
            if count < queued_count {
                self.queue.push((count, Reverse(pair)));
            }
        }
        None
    }

    fn merge(&mut self, pair: Pair) {
        let text = format!("{}{}", self.tokens[pair.0 as usize], self.tokens[pair.1 as usize]);
        // `ab + c` and `a + bc` are two merges into one token.
        let merged = *self.id_of.entry(text.clone()).or_insert_with(|| {
            self.tokens.push(text);
            self.tokens.len() as u32 - 1
        });
        self.merges.push(pair);
        for word_idx in self.pair_words.remove(&pair).unwrap_or_default() {
            self.uncount_pairs_of(word_idx);
            merge_symbols(&mut self.words[word_idx].symbols, pair, merged);
            self.count_pairs_of(word_idx);
        }
    }

    fn count_pairs_of(&mut self, word_idx: usize) {
        let word = &self.words[word_idx];
        for pair in pairs(&word.symbols) {
            self.pair_words.entry(pair).or_default().insert(word_idx);
            let count = self.pair_counts.entry(pair).or_default();
            *count += word.num_occurrences;
            if word.num_occurrences > 0 {
                self.queue.push((*count, Reverse(pair)));
            }
        }
    }

    fn uncount_pairs_of(&mut self, word_idx: usize) {
        let word = &self.words[word_idx];
        for pair in pairs(&word.symbols) {
            if let Some(count) = self.pair_counts.get_mut(&pair) {
                *count -= word.num_occurrences;
            }
        }
    }
}

fn pairs(symbols: &[u32]) -> impl Iterator<Item = Pair> {
    symbols.windows(2).map(|window| (window[0], window[1]))
}

/// Replaces `pair` by `merged`, left to right.
fn merge_symbols(symbols: &mut Vec<u32>, pair: Pair, merged: u32) {
    let mut write = 0;
    let mut read = 0;
    while read < symbols.len() {
        let is_pair = symbols[read] == pair.0 && symbols.get(read + 1) == Some(&pair.1);
        symbols[write] = if is_pair { merged } else { symbols[read] };
        read += if is_pair { 2 } else { 1 };
        write += 1;
    }
    symbols.truncate(write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn learner(words: &[(&str, u64)]) -> MergeLearner {
        let words: Vec<_> = words.iter().map(|&(text, count)| (text.to_owned(), count)).collect();
        MergeLearner::new(&('a'..='z').collect::<Vec<_>>(), &words)
    }

    fn learned_tokens(words: &[(&str, u64)], num_merges: usize) -> Vec<String> {
        let mut learner = learner(words);
        learner.learn(26 + num_merges, 1);
        learner.into_parts().0.split_off(26)
    }

    #[test]
    fn most_frequent_pairs_first() {
        // The example of the paper: low, lower, newest, widest.
        let words = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)];
        assert_eq!(learned_tokens(&words, 5), ["es", "est", "lo", "low", "ew"]);
    }

    #[test]
    fn ties_go_to_the_smallest_ids() {
        assert_eq!(learned_tokens(&[("zz", 2), ("ab", 2), ("ba", 2)], 3), ["ab", "ba", "zz"]);
    }

    #[test]
    fn overlapping_pairs_merge_from_the_left() {
        assert_eq!(learned_tokens(&[("aaaaa", 1)], 2), ["aa", "aaa"]);
        let mut symbols = vec![0, 0, 0];
        merge_symbols(&mut symbols, (0, 0), 7);
        assert_eq!(symbols, [7, 0]);
    }

    #[test]
    fn rare_pairs_are_left_alone() {
        let mut learner = learner(&[("ab", 1), ("cd", 2)]);
        learner.learn(100, 2);
        assert_eq!(learner.into_parts().0[26..], ["cd"]);
    }

    #[test]
    fn a_required_word_becomes_one_token() {
        let mut learner = learner(&[("yes", 0), ("best", 9), ("rest", 9)]);
        learner.learn(27, 1); // es, unless est: counts are equal, ids decide.
        learner.force_one_token(0);
        assert_eq!(learner.words[0].symbols.len(), 1);
        let (tokens, merges) = learner.into_parts();
        assert_eq!(tokens[26..], ["es", "yes"]);
        assert_eq!(merges.len(), 2);
    }

    /// The definition, recounting everything for every merge.
    fn naive_merges(words: &[(&str, u64)], num_tokens: usize) -> Vec<String> {
        let mut words: Vec<(Vec<String>, u64)> =
            words.iter().map(|(text, count)| (text.chars().map(String::from).collect(), *count)).collect();
        let mut tokens: Vec<String> = ('a'..='z').map(String::from).collect();
        while tokens.len() < num_tokens {
            let mut counts: HashMap<(usize, usize), u64> = HashMap::new();
            let id = |tokens: &[String], text: &String| tokens.iter().position(|t| t == text).unwrap();
            for (symbols, count) in &words {
                for pair in symbols.windows(2) {
                    *counts.entry((id(&tokens, &pair[0]), id(&tokens, &pair[1]))).or_default() += count;
                }
            }
            let best = counts.into_iter().filter(|&(_, count)| count > 0);
            let Some((pair, _)) = best.max_by_key(|&(pair, count)| (count, Reverse(pair))) else { break };
            let (left, right) = (tokens[pair.0].clone(), tokens[pair.1].clone());
            let merged = format!("{left}{right}");
            for (symbols, _) in &mut words {
                let mut position = 0;
                while position + 1 < symbols.len() {
                    if symbols[position] == left && symbols[position + 1] == right {
                        symbols.splice(position..position + 2, [merged.clone()]);
                    }
                    position += 1;
                }
            }
            if !tokens.contains(&merged) {
                tokens.push(merged);
            }
        }
        tokens
    }

    proptest! {
        #[test]
        fn equals_the_definition(words in prop::collection::vec(("[a-c]{0,7}", 1u64..4), 0..8)) {
            let words: Vec<(&str, u64)> = words.iter().map(|(text, count)| (text.as_str(), *count)).collect();
            let mut learner = learner(&words);
            learner.learn(40, 1);
            prop_assert_eq!(learner.into_parts().0, naive_merges(&words, 40));
        }
    }
}
