//! What prompts have in common, and in which order to read it.

use crate::vlm::Prompt;
use oqvl_text_prep::IMAGE_TOKEN_ID;
use std::sync::Arc;

/// A common beginning shorter than this many positions is read anew by every sequence: to share it would cost a pass
/// through the network of its own.
const MIN_SHARED: usize = 8;

/// What stands at one place of a prompt.
#[derive(Debug, Clone)]
pub(crate) enum Unit {
    /// A token.
    Token(i64),
    /// An image. It is held so that another image cannot come to lie at its address.
    Image(Arc<[f32]>),
}

impl PartialEq for Unit {
    /// Images are the same if they are one and the same in memory: comparing pixels would cost more than it saves.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Token(left), Self::Token(right)) => left == right,
            (Self::Image(left), Self::Image(right)) => Arc::ptr_eq(left, right),
            _ => false,
        }
    }
}

impl Unit {
    /// The units of a prompt whose placeholders and images have been found to match.
    pub(crate) fn of(prompt: &Prompt) -> Vec<Self> {
        let mut images = prompt.images.iter();
        let unit = |&id: &i64| match id {
            IMAGE_TOKEN_ID => images.next().map(|image| Self::Image(Arc::clone(image))),
            _ => Some(Self::Token(id)),
        };
        prompt.input_ids.iter().filter_map(unit).collect()
    }

    /// Positions it takes.
    pub(crate) fn len(&self, num_image_tokens: usize) -> usize {
        match self {
            Self::Token(_) => 1,
            Self::Image(_) => num_image_tokens,
        }
    }
}

/// Positions of units.
pub(crate) fn num_positions(units: &[Unit], num_image_tokens: usize) -> usize {
    units.iter().map(|unit| unit.len(num_image_tokens)).sum()
}

/// How many units both begin with.
pub(crate) fn common_prefix(left: &[Unit], right: &[Unit]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// A run of units to read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The segment before it, by its index in the plan; it stands earlier there.
    pub(crate) parent: Option<usize>,
    /// The prompt that has these units.
    pub(crate) row: usize,
    /// The first unit.
    pub(crate) start: usize,
    /// One past the last unit.
    pub(crate) end: usize,
    /// Whether it ends the prompt. If not, several prompts go on from here.
    pub(crate) is_last: bool,
}

impl Segment {
    /// Its units, of those of all prompts.
    pub(crate) fn units<'a>(&self, prompts: &'a [Vec<Unit>]) -> &'a [Unit] {
        &prompts[self.row][self.start..self.end]
    }
}

/// The segments of all prompts, as a forest: what several begin with is one segment. Every prompt has exactly one last
/// segment; it is empty if the prompt is.
pub(crate) fn plan(prompts: &[Vec<Unit>], num_image_tokens: usize) -> Vec<Segment> {
    let mut planner = Planner { prompts, num_image_tokens, segments: Vec::new() };
    planner.split(&(0..prompts.len()).collect::<Vec<_>>(), 0, None);
    planner.segments
}

struct Planner<'a> {
    prompts: &'a [Vec<Unit>],
    num_image_tokens: usize,
    segments: Vec<Segment>,
}

impl Planner<'_> {
    /// Plans `rows`, which are alike before `start` and go on after `parent`.
    fn split(&mut self, rows: &[usize], start: usize, parent: Option<usize>) {
        let Some((&first, others)) = rows.split_first() else { return };
        if others.is_empty() {
            let end = self.prompts[first].len();
            self.segments.push(Segment { parent, row: first, start, end, is_last: true });
            return;
        }
        let leader = &self.prompts[first];
        let shared = |row: &usize| common_prefix(leader, &self.prompts[*row]).min(self.longest_shared(*row));
        let end = others.iter().map(shared).min().unwrap_or(0).min(self.longest_shared(first));
        let worth_it = end > start && num_positions(&leader[start..end], self.num_image_tokens) >= MIN_SHARED;
        let (start, parent) = match worth_it {
            true => {
                self.segments.push(Segment { parent, row: first, start, end, is_last: false });
                (end, Some(self.segments.len() - 1))
            }
            false => (start, parent),
        };
        for group in self.groups(rows, end) {
            self.split(&group, start, parent);
        }
    }

    /// The last unit of a prompt is its own: what the network says there begins the answer.
    fn longest_shared(&self, row: usize) -> usize {
        self.prompts[row].len().saturating_sub(1)
    }

    /// Rows that agree in the unit at `at` too, in the order of their first.
    fn groups(&self, rows: &[usize], at: usize) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for &row in rows {
            let unit = self.prompts[row].get(at).filter(|_| at < self.longest_shared(row));
            let place = unit.and_then(|unit| {
                groups.iter().position(|group| {
                    at < self.longest_shared(group[0]) && self.prompts[group[0]].get(at) == Some(unit)
                })
            });
            match place {
                Some(place) => groups[place].push(row),
                None => groups.push(vec![row]),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(ids: impl IntoIterator<Item = i64>) -> Vec<Unit> {
        ids.into_iter().map(Unit::Token).collect()
    }

    /// The units a row reads, from its last segment back to the root.
    fn read_by(plan: &[Segment], prompts: &[Vec<Unit>], row: usize) -> Vec<Unit> {
        let mut at = plan.iter().position(|segment| segment.is_last && segment.row == row);
        let mut pieces = Vec::new();
        while let Some(segment) = at.map(|at| &plan[at]) {
            pieces.push(segment.units(prompts).to_vec());
            assert!(segment.parent < at, "a parent stands before its children");
            at = segment.parent;
        }
        pieces.reverse();
        pieces.concat()
    }

    #[test]
    fn the_questions_of_an_image_share_it_and_all_share_the_system_text() {
        let (one, two): (Arc<[f32]>, Arc<[f32]>) = (Arc::new([0.5]), Arc::new([0.5]));
        let prompt = |image: &Arc<[f32]>, question: i64| {
            let mut units = tokens(0..10);
            units.push(Unit::Image(Arc::clone(image)));
            units.extend(tokens([20, question, 30]));
            units
        };
        let prompts = [prompt(&one, 1), prompt(&one, 2), prompt(&two, 1), prompt(&two, 2)];
        let segment = |parent, row, start, end, is_last| Segment { parent, row, start, end, is_last };
        // Equal pixels in two places are two images.
        assert_eq!(
            plan(&prompts, 9),
            [
                segment(None, 0, 0, 10, false),
                segment(Some(0), 0, 10, 12, false),
                segment(Some(1), 0, 12, 14, true),
                segment(Some(1), 1, 12, 14, true),
                segment(Some(0), 2, 10, 12, false),
                segment(Some(4), 2, 12, 14, true),
                segment(Some(4), 3, 12, 14, true),
            ]
        );
        // An image of few tokens is not worth a pass, the system text is.
        assert_eq!(plan(&prompts, 4).iter().filter(|segment| !segment.is_last).count(), 1);
    }

    proptest! {
        #[test]
        fn every_prompt_is_read_whole_and_ends_in_a_segment_of_its_own(
            prompts in prop::collection::vec(prop::collection::vec(0i64..3, 0..30), 0..9),
            repeated in 0usize..12,
        ) {
            // A long common beginning in front of all but the first.
            let mut prompts: Vec<Vec<Unit>> = prompts.into_iter().map(tokens).collect();
            for prompt in prompts.iter_mut().skip(1) {
                prompt.splice(0..0, tokens(vec![7; repeated]));
            }
            let plan = plan(&prompts, 4);
            for (row, prompt) in prompts.iter().enumerate() {
                let own: Vec<_> =
                    plan.iter().filter(|segment| segment.is_last && segment.row == row).collect();
                prop_assert_eq!(own.len(), 1);
                prop_assert_eq!(own[0].end > own[0].start, !prompt.is_empty());
                prop_assert_eq!(&read_by(&plan, &prompts, row), prompt);
            }
            for (at, segment) in plan.iter().enumerate().filter(|(_, segment)| !segment.is_last) {
                prop_assert!(segment.end - segment.start >= MIN_SHARED);
                let children = plan.iter().filter(|child| child.parent == Some(at)).count();
                prop_assert!(children > 1, "{segment:?} is shared by {children}");
            }
        }
    }
}
