//! Totals that do not fall when one of their sources ends.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Sums of what sources of type `S` count, by `K`. A source is a session, or a key of one: its
/// counts go when it ends, but a counter that falls would be taken for one that began anew.
#[derive(Debug)]
pub(super) struct Totals<S, K, const N: usize> {
    /// Each source as last seen.
    seen: HashMap<S, (K, [u64; N])>,
    /// What sources had counted that have ended.
    ended: BTreeMap<K, [u64; N]>,
}

impl<S, K, const N: usize> Default for Totals<S, K, N> {
    fn default() -> Self {
        Self {
            seen: HashMap::new(),
            ended: BTreeMap::new(),
        }
    }
}

impl<S: Hash + Eq, K: Ord + Clone, const N: usize> Totals<S, K, N> {
    /// Takes in the counts of all sources there are, or of some: then the others go on, as last
    /// seen. One whose counts fell, or that counts for somebody else now, is another source of the
    /// same name.
    pub(super) fn update(&mut self, sources: impl Iterator<Item = (S, K, [u64; N])>, all: bool) {
        let mut before = std::mem::take(&mut self.seen);
        for (source, key, counts) in sources {
            if let Some((old_key, old)) = before.remove(&source) {
                let goes_on =
                    old_key == key && counts.iter().zip(&old).all(|(new, old)| new >= old);
                if !goes_on {
                    add(self.ended.entry(old_key).or_insert([0; N]), &old);
                }
            }
            self.seen.insert(source, (key, counts));
        }
        if !all {
            for (source, last) in before.drain() {
                self.seen.entry(source).or_insert(last);
            }
        }
        for (key, counts) in before.into_values() {
            add(self.ended.entry(key).or_insert([0; N]), &counts);
        }
    }

    /// Forgets the sums of ended sources that are not wanted any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        let live: std::collections::BTreeSet<&K> = self.seen.values().map(|(key, _)| key).collect();
        self.ended
            .retain(|key, _| live.contains(key) || wanted(key));
    }

    /// What ended sources had counted.
    pub(super) fn ended(&self) -> &BTreeMap<K, [u64; N]> {
        &self.ended
    }

    /// What all sources have counted, those that ended included.
    pub(super) fn all(&self) -> BTreeMap<K, [u64; N]> {
        let mut all = self.ended.clone();
        for (key, counts) in self.seen.values() {
            add(all.entry(key.clone()).or_insert([0; N]), counts);
        }
        all
    }
}

/// Adds what another source counted.
pub(super) fn add<const N: usize>(sum: &mut [u64; N], counts: &[u64; N]) {
    for (sum, count) in sum.iter_mut().zip(counts) {
        *sum = sum.saturating_add(*count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn totals(steps: &[&[(u8, char, u64)]]) -> BTreeMap<char, [u64; 1]> {
        let mut totals = Totals::default();
        for step in steps {
            let sources = step
                .iter()
                .map(|&(source, key, count)| (source, key, [count]));
            totals.update(sources, true);
        }
        totals.all()
    }

    #[test]
    fn what_ended_sources_counted_stays() {
        assert_eq!(totals(&[&[(1, 'a', 5), (2, 'a', 7)]]), [('a', [12])].into());
        let ended = totals(&[&[(1, 'a', 5), (2, 'a', 7)], &[(2, 'a', 8)], &[]]);
        assert_eq!(ended, [('a', [13])].into());
    }

    #[test]
    fn a_source_that_is_not_seen_for_a_while_counts_once() {
        let mut totals = Totals::<u8, char, 1>::default();
        totals.update([(1, 'a', [5]), (2, 'a', [7])].into_iter(), true);
        totals.update([(2, 'a', [8])].into_iter(), false);
        assert_eq!(totals.all(), [('a', [13])].into());
        totals.update([(1, 'a', [6]), (2, 'a', [8])].into_iter(), true);
        assert_eq!(totals.all(), [('a', [14])].into());
    }

    #[test]
    fn a_source_that_begins_anew_is_another_one() {
        assert_eq!(
            totals(&[&[(1, 'a', 5)], &[(1, 'a', 2)]]),
            [('a', [7])].into()
        );
        let moved = totals(&[&[(1, 'a', 5)], &[(1, 'b', 6)]]);
        assert_eq!(moved, [('a', [5]), ('b', [6])].into());
    }

    #[test]
    fn what_nobody_wants_is_forgotten_unless_it_lives() {
        let mut totals = Totals::<u8, char, 1>::default();
        totals.update(
            [(1, 'a', [1]), (2, 'b', [2]), (3, 'c', [3])].into_iter(),
            true,
        );
        totals.update([(3, 'c', [1])].into_iter(), true);
        totals.retain(|&key| key == 'a');
        assert_eq!(*totals.ended(), [('a', [1]), ('c', [3])].into());
    }

    proptest! {
        #[test]
        fn totals_never_fall(
            steps in prop::collection::vec(prop::collection::hash_map(0_u8..4, 0_u64..100, 0..4), 1..20)
        ) {
            let mut totals = Totals::<u8, (), 1>::default();
            let mut last = 0;
            for step in steps {
                totals.update(step.into_iter().map(|(source, count)| (source, (), [count])), true);
                let now = totals.all().get(&()).map_or(0, |[count]| *count);
                prop_assert!(now >= last);
                last = now;
            }
        }
    }
}
