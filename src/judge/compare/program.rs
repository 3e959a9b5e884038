//! A ruleset as a decision program: all chains that a packet meets at one place, laid out in a row, so that what is known of a
//! packet can be taken out of it and the rest be compared.
//!
//! The program decides as [`crate::judge::judge`] does; a test holds them together. It says less: every refusal is the same.

use std::collections::HashMap;

use crate::judge::compare::dimension::{Dimension, Units};
use crate::judge::compare::values::Values;
use crate::judge::packet::Packet;

/// A question about one dimension: an index into [`Atoms`].
pub type AtomId = u32;
/// The id of a rule: an index into [`Atoms`].
pub type Label = u32;

/// A question about one dimension: does the packet's value lie in one of these intervals?
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Atom {
    /// Which dimension.
    pub dimension: Dimension,
    /// First, last, and the rule that an element of a set names; sorted, and none overlaps another.
    pub members: Vec<(u128, u128, Label)>,
}

/// The questions and the rule ids of both rulesets, each once, so that what is the same on both sides has the same number.
#[derive(Debug, Default)]
pub struct Atoms {
    atoms: Vec<Atom>,
    numbers: HashMap<Atom, AtomId>,
    labels: Vec<String>,
    label_numbers: HashMap<String, Label>,
}

impl Atoms {
    /// The number of a question.
    pub fn intern(&mut self, atom: Atom) -> AtomId {
        if let Some(number) = self.numbers.get(&atom) {
            return *number;
        }
        let number = self.atoms.len() as AtomId;
        self.atoms.push(atom.clone());
        self.numbers.insert(atom, number);
        number
    }

    /// The number of a rule id.
    pub fn label(&mut self, id: &str) -> Label {
        if let Some(number) = self.label_numbers.get(id) {
            return *number;
        }
        let number = self.labels.len() as Label;
        self.labels.push(id.to_string());
        self.label_numbers.insert(id.to_string(), number);
        number
    }

    /// The rule id of a number.
    pub fn name(&self, label: Label) -> &str {
        self.labels.get(label as usize).map_or("", String::as_str)
    }

    /// All rule ids with their numbers.
    pub fn labels(&self) -> impl Iterator<Item = (Label, &str)> {
        self.labels.iter().enumerate().map(|(label, id)| (label as Label, id.as_str()))
    }

    /// The question of a number. Numbers come from [`Atoms::intern`] only.
    pub fn get(&self, atom: AtomId) -> &Atom {
        &self.atoms[atom as usize]
    }

    /// The same question of the destination port.
    pub fn of_destination_port(&mut self, atom: AtomId) -> AtomId {
        let members = self.get(atom).members.clone();
        self.intern(Atom { dimension: Dimension::DestinationPort, members })
    }
}

impl Atom {
    /// What the question is answered for all these values at once; open when not all of them answer alike.
    pub fn answer(&self, values: &Values) -> Answer {
        let mut answers = values.intervals().iter().map(|(first, last)| {
            let behind = self.members.partition_point(|member| member.0 <= *last);
            match behind.checked_sub(1).and_then(|at| self.members.get(at)) {
                Some(member) if member.0 <= *first && *last <= member.1 => Answer::Yes(member.2),
                Some(member) if member.1 >= *first => Answer::Open,
                _ => Answer::No,
            }
        });
        let first = answers.next().unwrap_or(Answer::Open);
        if answers.all(|answer| answer == first) { first } else { Answer::Open }
    }

    /// The rule of the interval that holds the value.
    pub fn find(&self, value: u128) -> Option<Label> {
        let behind = self.members.partition_point(|member| member.0 <= value);
        behind.checked_sub(1).and_then(|at| self.members.get(at)).filter(|member| value <= member.1).map(|member| member.2)
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// It is refused, one way or another.
    Deny,
    /// The rule lets it pass.
    Allow(Label),
    /// It passes by the rule that the element names which it met.
    Member(AtomId),
}

/// Where it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum To {
    /// With this step, which always stands further on.
    Step(u32),
    /// Nowhere.
    End(End),
}

/// One step: goes to `then` when all questions are answered yes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// Where its questions begin in [`Program::questions`].
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// When all are answered yes.
    pub then: To,
    /// Otherwise.
    pub otherwise: To,
}

/// The whole program. In its one form: steps without questions, with a settled answer or without a choice do not occur.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// Where it begins.
    pub entry: To,
    /// Its steps.
    pub steps: Vec<Step>,
    /// The questions of all steps, those of each sorted.
    pub questions: Vec<AtomId>,
}

/// An answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not known yet.
    Open,
    /// No.
    No,
    /// Yes, and by an element that names this rule.
    Yes(Label),
}

impl Program {
    /// The questions of a step.
    pub fn questions_of(&self, step: &Step) -> &[AtomId] {
        self.questions.get(step.first as usize..(step.first + step.count) as usize).unwrap_or_default()
    }

    /// A program that equals none of a ruleset: it ends with a rule that there is not.
    pub fn nothing() -> Program {
        Program { entry: To::End(End::Allow(Label::MAX)), steps: Vec::new(), questions: Vec::new() }
    }

    /// Whether there is a packet that it could refuse, as far as its form says.
    pub fn refuses(&self) -> bool {
        let ends = self.steps.iter().flat_map(|step| [step.then, step.otherwise]).chain([self.entry]);
        ends.into_iter().any(|to| to == To::End(End::Deny))
    }

    /// What it decides when nothing is left to ask.
    pub fn end(&self) -> Option<End> {
        match self.entry {
            To::End(end) => Some(end),
            To::Step(_) => None,
        }
    }

    /// The program that is left when some questions are answered.
    pub fn given(&self, answer: impl Fn(AtomId) -> Answer) -> Program {
        // From the last step to the first, because steps lead forward: where each leads to, and which questions stay.
        let mut kept: Vec<Step> = Vec::new();
        let mut questions: Vec<AtomId> = Vec::new();
        let mut leads: Vec<To> = vec![To::End(End::Deny); self.steps.len()];
        let follow = |to: To, leads: &[To]| match to {
            To::Step(step) => leads.get(step as usize).copied().unwrap_or(To::End(End::Deny)),
            end => end,
        };
        let settle = |to: To| match to {
            To::End(End::Member(atom)) => match answer(atom) {
                Answer::Yes(label) => To::End(End::Allow(label)),
                _ => to,
            },
            to => to,
        };
        for (position, step) in self.steps.iter().enumerate().rev() {
            let begin = questions.len();
            let mut no = false;
            for question in self.questions_of(step) {
                match answer(*question) {
                    Answer::Open => questions.push(*question),
                    Answer::No => {
                        no = true;
                        break;
                    }
                    Answer::Yes(_) => {}
                }
            }
            let otherwise = follow(step.otherwise, &leads);
            let then = settle(follow(step.then, &leads));
            if no || then == otherwise || questions.len() == begin {
                questions.truncate(begin);
                leads[position] = if no { otherwise } else { then };
            } else {
                leads[position] = To::Step(kept.len() as u32);
                kept.push(Step { first: begin as u32, count: (questions.len() - begin) as u32, then, otherwise });
            }
        }
        let entry = follow(self.entry, &leads);
        tidy(entry, &kept, &questions)
    }
}

/// Puts steps in order that were made from the last to the first, and leaves out what is never reached.
fn tidy(entry: To, backwards: &[Step], questions: &[AtomId]) -> Program {
    let mut reached = vec![false; backwards.len()];
    let mark = |to: To, reached: &mut Vec<bool>| {
        if let To::Step(step) = to {
            reached[step as usize] = true;
        }
    };
    mark(entry, &mut reached);
    for (position, step) in backwards.iter().enumerate().rev() {
        if reached[position] {
            mark(step.then, &mut reached);
            mark(step.otherwise, &mut reached);
        }
    }
    let mut numbers = vec![0u32; backwards.len()];
    let mut next = 0;
    for position in (0..backwards.len()).rev().filter(|position| reached[*position]) {
        numbers[position] = next;
        next += 1;
    }
    let renumber = |to: To| match to {
        To::Step(step) => To::Step(numbers[step as usize]),
        end => end,
    };
    let mut tidied = Program { entry: renumber(entry), steps: Vec::with_capacity(next as usize), questions: Vec::new() };
    for step in backwards.iter().zip(&reached).rev().filter_map(|(step, reached)| reached.then_some(step)) {
        let first = tidied.questions.len() as u32;
        let of_step = questions.get(step.first as usize..(step.first + step.count) as usize).unwrap_or_default();
        tidied.questions.extend_from_slice(of_step);
        tidied.steps.push(Step { first, count: step.count, then: renumber(step.then), otherwise: renumber(step.otherwise) });
    }
    tidied
}

/// Runs a program: what it makes of a packet that is at its place.
pub fn run(program: &Program, packet: &Packet, units: &Units, atoms: &Atoms) -> End {
    let answer = |atom: AtomId| {
        let atom = atoms.get(atom);
        atom.dimension.read(packet, units).and_then(|value| atom.find(value)).map_or(Answer::No, Answer::Yes)
    };
    let mut at = program.entry;
    loop {
        match at {
            To::End(End::Member(atom)) => {
                return match answer(atom) {
                    Answer::Yes(label) => End::Allow(label),
                    _ => End::Deny,
                };
            }
            To::End(end) => return end,
            To::Step(step) => {
                let Some(step) = program.steps.get(step as usize) else { return End::Deny };
                let yes = program.questions_of(step).iter().all(|question| matches!(answer(*question), Answer::Yes(_)));
                at = if yes { step.then } else { step.otherwise };
            }
        }
    }
}
