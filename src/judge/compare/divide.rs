//! Where two programs part: the packet space is cut along one dimension after another, at the break points of both, and only where
//! what is left of the two differs it is cut further.
//!
//! Exact: every cut is made at every value where an answer changes, and nothing is tried by sample. Values for which the same is
//! left on both sides are one class.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use crate::judge::compare::Trouble;
use crate::judge::compare::dimension::{Dimension, Place, Units};
use crate::judge::compare::program::{Answer, AtomId, Atoms, End, Label, Program};
use crate::judge::compare::values::Values;

/// What becomes of a packet before and after.
pub type Pair = (End, End);

/// A box of the packet space: the values of each dimension that is bounded, by dimension. A dimension of which a packet has no value
/// does not bound it.
pub type Bounds = Vec<(Dimension, Values)>;

/// Programs of more steps than this are cut where that leaves least to do; for smaller ones the order of the dimensions is as good.
const SMALL: usize = 24;

/// Whether what is left of a program lets everything pass, with the bounds of what that still asks. Thousands of boxes that differ in
/// a destination leave the same.
pub type Passing = HashMap<(Program, Bounds), bool>;

/// A comparison at one place.
pub struct Divide<'a> {
    /// The questions of both programs.
    pub atoms: &'a mut Atoms,
    /// The units that both know.
    pub units: &'a Units,
    /// Where.
    pub place: Place,
    /// The ids of rules that people wrote.
    pub written: &'a HashSet<Label>,
    /// How much may still be looked at.
    pub effort: &'a mut Effort,
}

/// How many questions, values and boxes a comparison may look at before it is called out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort(pub u64);

impl Effort {
    /// What a person waits for: several seconds, and less than 1 GiB.
    pub const PATIENT: Effort = Effort(400_000_000);

    fn spend(&mut self, amount: usize) -> Result<(), Trouble> {
        let left = self.0.checked_sub(amount as u64);
        self.0 = left.ok_or_else(|| Trouble::OutOfReach("the two policies cut the packet space into too many pieces".to_string()))?;
        Ok(())
    }
}

/// Which questions are answered with yes.
type Met = Vec<(AtomId, Label)>;
/// Values that are not told apart, and which questions they answer with yes.
type Class = (Met, Values);
/// What is left of two programs for some values.
type Left = (Rc<(Program, Program)>, Values);

/// What was cut already, as far as later cuts depend on it, and what is not looked at.
#[derive(Debug, Clone)]
struct Known<'b> {
    families: Values,
    translation: Translation,
    within: &'b [(Dimension, Values)],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Translation {
    Open,
    Known,
}

impl<'b> Known<'b> {
    /// What is known when these values of a dimension are looked at.
    fn with(&self, dimension: Dimension, values: &Values) -> Known<'b> {
        let mut inner = self.clone();
        match dimension {
            Dimension::Family => inner.families = values.clone(),
            Dimension::Translated => inner.translation = Translation::Known,
            _ => {}
        }
        inner
    }
}

/// What the questions of two programs are answered for one class of values.
struct Answers(Vec<Answer>);

impl Answers {
    /// No question along the dimension is answered with yes, and no other at all.
    fn new(atoms: &Atoms, dimension: Dimension, programs: [&Program; 2]) -> Answers {
        let asked = || programs.into_iter().flat_map(|program| &program.questions).copied();
        let mut answers = vec![Answer::Open; asked().max().map_or(0, |last| last as usize + 1)];
        for atom in asked().filter(|atom| atoms.get(*atom).dimension == dimension) {
            answers[atom as usize] = Answer::No;
        }
        Answers(answers)
    }

    fn met(&mut self, met: &Met) {
        for (atom, label) in met {
            self.0[*atom as usize] = Answer::Yes(*label);
        }
    }

    fn missed(&mut self, met: &Met) {
        for (atom, _) in met {
            self.0[*atom as usize] = Answer::No;
        }
    }

    fn get(&self, atom: AtomId) -> Answer {
        self.0.get(atom as usize).copied().unwrap_or(Answer::Open)
    }
}

impl Divide<'_> {
    /// Where the two differ, as boxes that do not overlap.
    pub fn run(&mut self, old: &Program, new: &Program) -> Result<Vec<(Pair, Bounds)>, Trouble> {
        self.divide(old, new, &Known { families: Dimension::Family.domain(), translation: Translation::Open, within: &[] })
    }

    /// Whether a program lets every packet of a box pass. `known` is what was found out so at this place.
    pub fn allows(&mut self, program: &Program, within: &Bounds, known: &mut Passing) -> Result<bool, Trouble> {
        let bound = |dimension: Dimension| within.iter().find(|bound| bound.0 == dimension).map(|bound| &bound.1);
        let families = bound(Dimension::Family).cloned().unwrap_or_else(|| Dimension::Family.domain());
        let atoms = &*self.atoms;
        // Whose rule it passes by is not asked: one stands for all.
        let narrowed = program.given(|atom| match bound(atoms.get(atom).dimension) {
            Some(values) => match atoms.get(atom).answer(values) {
                Answer::Yes(_) => Answer::Yes(0),
                answer => answer,
            },
            None => Answer::Open,
        });
        let asked: BTreeSet<Dimension> = narrowed.questions.iter().map(|atom| atoms.get(*atom).dimension).collect();
        // What is asked of another dimension can become a question of this one, but of addresses.
        let counts = |dimension: Dimension| asked.contains(&dimension) || !Dimension::ADDRESSES.contains(&dimension);
        let within: Bounds = within.iter().filter(|(dimension, _)| counts(*dimension)).cloned().collect();
        let key = (narrowed, within);
        if let Some(allows) = known.get(&key) {
            return Ok(*allows);
        }
        let (narrowed, within) = &key;
        let allows = self.allows_all(narrowed, &Known { families, translation: Translation::Open, within })?;
        known.insert(key, allows);
        Ok(allows)
    }

    fn allows_all(&mut self, program: &Program, known: &Known) -> Result<bool, Trouble> {
        match program.end() {
            Some(end) => return Ok(end != End::Deny),
            // Where nothing refuses, nothing has to be cut.
            None if !program.refuses() => return Ok(true),
            None => {}
        }
        let (dimension, classes) = self.cut(program, program, known)?;
        // The other side is no program's end, so that nothing is passed over, and what is left alike is looked at once.
        let none = Program::nothing();
        for (left, values) in self.left(program, &none, dimension, classes)? {
            if !self.allows_all(&left.0, &known.with(dimension, &values))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn divide(&mut self, old: &Program, new: &Program, known: &Known) -> Result<Vec<(Pair, Bounds)>, Trouble> {
        if old == new {
            return Ok(Vec::new());
        }
        if let (Some(before), Some(after)) = (old.end(), new.end()) {
            return Ok(if self.matters(before, after) { vec![((before, after), Vec::new())] } else { Vec::new() });
        }
        let (dimension, classes) = self.cut(old, new, known)?;
        let domain = self.domain(dimension, known);
        let bounded = |(pair, mut bounds): (Pair, Bounds), values: Values| {
            if values != domain {
                let at = bounds.partition_point(|bound| bound.0 < dimension);
                bounds.insert(at, (dimension, values));
            }
            (pair, bounds)
        };
        let lefts = self.left(old, new, dimension, classes)?;
        if let [(left, values)] = lefts.as_slice() {
            // What is found for one class only cannot be joined with anything.
            let found = self.divide(&left.0, &left.1, &known.with(dimension, values))?;
            return Ok(found.into_iter().map(|found| bounded(found, values.clone())).collect());
        }
        let mut found: Vec<(Pair, Bounds, Values)> = Vec::new();
        for (left, values) in lefts {
            for (pair, bounds) in self.divide(&left.0, &left.1, &known.with(dimension, &values))? {
                self.effort.spend(bounds.iter().map(|(_, values)| values.intervals().len()).sum::<usize>() + 64)?;
                found.push((pair, bounds, values.clone()));
            }
        }
        // Only boxes in which the same becomes of packets can be joined.
        found.sort_by_key(|found| found.0);
        let mut boxes = Vec::with_capacity(found.len());
        // There are few unions in very many boxes, which share them.
        let mut unions: BTreeMap<Vec<Values>, Values> = BTreeMap::new();
        let mut found = found.into_iter().peekable();
        while let Some((pair, bounds, values)) = found.next() {
            let mut same = vec![(bounds, values)];
            while let Some((_, bounds, values)) = found.next_if(|found| found.0 == pair) {
                same.push((bounds, values));
            }
            for (bounds, parts) in alike(same) {
                let values = match (parts.as_slice(), unions.get(&parts)) {
                    ([values], _) | (_, Some(values)) => values.clone(),
                    _ => {
                        let values = Values::of(&parts.iter().collect::<Vec<_>>());
                        unions.insert(parts, values.clone());
                        values
                    }
                };
                boxes.push(bounded((pair, bounds), values));
            }
        }
        Ok(boxes)
    }

    /// What is left of the two programs for each class, each once and in the order of the values; nothing where the same is left.
    fn left(&mut self, old: &Program, new: &Program, dimension: Dimension, classes: Vec<Class>) -> Result<Vec<Left>, Trouble> {
        let mut lefts: Vec<Left> = Vec::new();
        let mut more: Vec<Vec<Values>> = Vec::new();
        let mut numbers: HashMap<Rc<(Program, Program)>, usize> = HashMap::new();
        let mut answers = Answers::new(self.atoms, dimension, [old, new]);
        for (met, values) in classes {
            self.effort.spend(old.questions.len() + new.questions.len() + values.intervals().len() + 16)?;
            answers.met(&met);
            let answer = |atom: AtomId| answers.get(atom);
            let mut left = (old.given(answer), new.given(answer));
            answers.missed(&met);
            if dimension == Dimension::Translated && values.first() == Some(0) {
                left = (self.untranslated(left.0), self.untranslated(left.1));
            }
            if left.0 == left.1 {
                continue;
            }
            match numbers.get(&left).and_then(|number| more.get_mut(*number)) {
                Some(more) => more.push(values),
                None => {
                    let left = Rc::new(left);
                    numbers.insert(Rc::clone(&left), lefts.len());
                    lefts.push((left, Values::default()));
                    more.push(vec![values]);
                }
            }
        }
        for ((_, values), more) in lefts.iter_mut().zip(more) {
            *values = Values::of(&more.iter().collect::<Vec<_>>());
        }
        Ok(lefts)
    }

    /// Whether somebody wants to know: not when rules that nobody wrote let pass what others let pass.
    fn matters(&self, before: End, after: End) -> bool {
        match (before, after) {
            (End::Allow(before), End::Allow(after)) => before != after && self.written.contains(&before) && self.written.contains(&after),
            (before, after) => before != after,
        }
    }

    fn domain(&self, dimension: Dimension, known: &Known) -> Values {
        let whole = match dimension {
            Dimension::Unit => Values::new([(0, self.units.len() as u128)]),
            Dimension::Protocol => dimension.domain_in(&known.families),
            _ => self.place.domain(dimension),
        };
        match known.within.iter().find(|(bounded, _)| *bounded == dimension) {
            Some((_, values)) => whole.within(values),
            None => whole,
        }
    }

    /// The program for packets of which nothing was translated: their original port is their port.
    fn untranslated(&mut self, mut program: Program) -> Program {
        for step in &program.steps {
            let of_step = step.first as usize..(step.first + step.count) as usize;
            let Some(questions) = program.questions.get_mut(of_step) else { continue };
            for question in questions.iter_mut() {
                if self.atoms.get(*question).dimension == Dimension::OriginalPort {
                    *question = self.atoms.of_destination_port(*question);
                }
            }
            questions.sort_unstable();
        }
        program
    }

    /// The dimension to cut along, and the classes of its values.
    fn cut(&mut self, old: &Program, new: &Program, known: &Known) -> Result<(Dimension, Vec<Class>), Trouble> {
        let asked: BTreeSet<AtomId> = old.questions.iter().chain(&new.questions).copied().collect();
        let mut open: BTreeMap<Dimension, Vec<AtomId>> = BTreeMap::new();
        for atom in asked {
            open.entry(self.atoms.get(atom).dimension).or_default().push(atom);
        }
        if open.contains_key(&Dimension::OriginalPort) && known.translation == Translation::Open {
            open.entry(Dimension::Translated).or_default();
        }
        // A program that has not ended asks something.
        let first = open.keys().next().copied().unwrap_or(Dimension::Family);
        let many = old.steps.len() + new.steps.len() > SMALL;
        let first_only = first < Dimension::DestinationPort || !many || open.len() == 1;
        let looked_at = open.values().take(if first_only { 1 } else { open.len() }).flatten();
        self.effort.spend(looked_at.map(|atom| 4 * self.atoms.get(*atom).members.len() + 4).sum())?;
        let classes = |dimension: Dimension| {
            let atoms = open.get(&dimension).map_or(&[] as &[AtomId], Vec::as_slice);
            (dimension, self.classes(dimension, &self.domain(dimension, known), atoms))
        };
        if first_only {
            return Ok(classes(first));
        }
        let cost = |dimension: Dimension, classes: &[Class]| {
            let unasked: usize = [old, new].iter().map(|program| self.unasked(program, dimension)).sum();
            classes.iter().map(|(met, _)| met.len() + unasked).sum::<usize>()
        };
        let cuts = open.keys().map(|dimension| classes(*dimension));
        Ok(cuts.min_by_key(|(dimension, classes)| (cost(*dimension, classes), *dimension)).unwrap_or_else(|| classes(first)))
    }

    /// How many steps do not ask along a dimension.
    fn unasked(&self, program: &Program, dimension: Dimension) -> usize {
        let asks = |question: &AtomId| self.atoms.get(*question).dimension == dimension;
        program.steps.iter().filter(|step| !program.questions_of(step).iter().any(asks)).count()
    }

    /// The values of the domain, those together that answer all these questions alike.
    fn classes(&self, dimension: Dimension, domain: &Values, atoms: &[AtomId]) -> Vec<Class> {
        if dimension == Dimension::Translated {
            // Apart in any case: what depends on it follows.
            let answers = |value: u128| atoms.iter().filter_map(|atom| Some((*atom, self.atoms.get(*atom).find(value)?))).collect();
            let here = [0, 1].into_iter().filter(|value| domain.contains(*value));
            return here.map(|value| (answers(value), Values::one(value))).collect();
        }
        // Where intervals begin, and behind where they end.
        let mut begins: Vec<(u128, AtomId, Label)> = Vec::new();
        let mut ends: Vec<(u128, AtomId)> = Vec::new();
        let mut cuts: Vec<u128> = Vec::new();
        for atom in atoms {
            for (first, last, label) in &self.atoms.get(*atom).members {
                begins.push((*first, *atom, *label));
                cuts.push(*first);
                if let Some(behind) = last.checked_add(1) {
                    ends.push((behind, *atom));
                    cuts.push(behind);
                }
            }
        }
        for (first, last) in domain.intervals() {
            cuts.push(*first);
            cuts.extend(last.checked_add(1));
        }
        begins.sort_unstable();
        ends.sort_unstable();
        cuts.sort_unstable();
        cuts.dedup();
        let (mut begins, mut ends) = (begins.into_iter().peekable(), ends.into_iter().peekable());
        let mut domain = domain.intervals().iter().peekable();
        // By number, as they stand in a class.
        let mut met = Met::new();
        let mut classes: Vec<Met> = Vec::new();
        let mut intervals: Vec<Vec<(u128, u128)>> = Vec::new();
        let mut numbers: HashMap<Met, usize> = HashMap::new();
        for (position, first) in cuts.iter().copied().enumerate() {
            // ORDER: ends before begins, because one interval of an atom may begin where another ends.
            while let Some((_, atom)) = ends.next_if(|(at, _)| *at <= first) {
                if let Ok(at) = met.binary_search_by_key(&atom, |answer| answer.0) {
                    met.remove(at);
                }
            }
            while let Some((_, atom, label)) = begins.next_if(|(at, _, _)| *at <= first) {
                match met.binary_search_by_key(&atom, |answer| answer.0) {
                    Ok(at) => met[at] = (atom, label),
                    Err(at) => met.insert(at, (atom, label)),
                }
            }
            while domain.next_if(|interval| interval.1 < first).is_some() {}
            if domain.peek().is_none_or(|interval| interval.0 > first) {
                continue;
            }
            let last = cuts.get(position + 1).map_or(u128::MAX, |next| next - 1);
            match numbers.get(&met).and_then(|number| intervals.get_mut(*number)) {
                Some(intervals) => intervals.push((first, last)),
                None => {
                    numbers.insert(met.clone(), classes.len());
                    classes.push(met.clone());
                    intervals.push(vec![(first, last)]);
                }
            }
        }
        classes.into_iter().zip(intervals.into_iter().map(Values::new)).collect()
    }
}

/// So many boxes are compared with each other; more are looked up.
const FEW: usize = 8;

/// Equal boxes made one, in the order of the first of each, with all that goes with them.
pub fn alike<T>(boxes: Vec<(Bounds, T)>) -> Vec<(Bounds, Vec<T>)> {
    let few = boxes.len() <= FEW;
    let mut apart: Vec<(Bounds, Vec<T>)> = Vec::with_capacity(boxes.len());
    let mut numbers: BTreeMap<Bounds, usize> = BTreeMap::new();
    for (bounds, with) in boxes {
        let known = if few { apart.iter().position(|(known, _)| *known == bounds) } else { numbers.get(&bounds).copied() };
        match known.and_then(|number| apart.get_mut(number)) {
            Some((_, all)) => all.push(with),
            None => {
                if !few {
                    numbers.insert(bounds.clone(), apart.len());
                }
                apart.push((bounds, vec![with]));
            }
        }
    }
    apart
}
