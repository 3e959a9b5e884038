//! From a ruleset to a program: chains written out where they are jumped to, tests turned into questions.

use crate::base::net::Protocol;
use crate::base::packet::Direction;
use crate::judge::compare::Trouble;
use crate::judge::compare::dimension::{Dimension, Place, Units};
use crate::judge::compare::program::{Answer, Atom, AtomId, Atoms, End, Label, Program, Step, To};
use crate::judge::compare::values::Values;
use crate::judge::packet::Link;
use crate::judge::trace::source;
use crate::ruleset::field::{Field, LOOPBACK, STATUS_DNAT, ct_state};
use crate::ruleset::program::{Base, Hook};
use crate::ruleset::rule::{Action, Carries, Operator, Rule, Side, Statement, Test};
use crate::ruleset::{Chain, Ruleset};

/// The most steps of a program: chains that jump to each other again and again would never end.
const STEPS: usize = 1 << 20;
/// More chains inside each other than the kernel's sixteen would be a loop. The same limit as that of [`crate::judge::judge`].
const DEPTH: usize = 64;
/// Index of an interface that is not loopback.
const OTHER_INTERFACE: u128 = 2;

/// Lays out what a ruleset does at a place.
pub fn program(ruleset: &Ruleset, place: Place, units: &Units, atoms: &mut Atoms) -> Result<Program, Trouble> {
    let mut bases: Vec<(usize, &Chain, &Base)> = ruleset.chains.iter().filter_map(|chain| base_at(place, chain)).collect();
    bases.sort_by_key(|(hook, _, base)| (*hook, base.priority));
    let mut layout = Layout { ruleset, place, units, atoms, steps: Vec::new(), marks: Vec::new() };
    if bases.is_empty() {
        let label = layout.atoms.label("no-rules");
        return Ok(Program { entry: To::End(End::Allow(label)), steps: Vec::new(), questions: Vec::new() });
    }
    let last = bases.len() - 1;
    for (position, (_, chain, base)) in bases.into_iter().enumerate() {
        // An accept ends only its own base chain; a refusal ends all.
        let next = (position < last).then(|| layout.mark());
        let bottom = layout.mark();
        layout.chain(chain, bottom, next, 0)?;
        layout.put(bottom);
        let policy = match (base.accepts, next) {
            (false, _) => Target::End(End::Deny),
            (true, Some(next)) => Target::Mark(next),
            (true, None) => Target::End(End::Allow(layout.atoms.label("policy"))),
        };
        layout.steps.push((Vec::new(), policy, policy));
        if let Some(next) = next {
            layout.put(next);
        }
    }
    Ok(layout.finish())
}

/// A base chain that a packet meets there, and at which of its hooks.
fn base_at(place: Place, chain: &Chain) -> Option<(usize, &Chain, &Base)> {
    let hooks: &[Hook] = match place.direction() {
        Direction::In => &[Hook::Prerouting, Hook::Input],
        Direction::Out => &[Hook::Output, Hook::Postrouting],
        Direction::Forward => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
    };
    let base = chain.def.base.as_ref()?;
    Some((hooks.iter().position(|hook| *hook == base.hook)?, chain, base))
}

/// Where a step leads to while the program is laid out.
#[derive(Debug, Clone, Copy)]
enum Target {
    Next,
    Mark(usize),
    End(End),
}

/// The questions of a rule, and that whose element says whose rule it is.
type Asked = (Vec<AtomId>, Option<AtomId>);

struct Layout<'a> {
    ruleset: &'a Ruleset,
    place: Place,
    units: &'a Units,
    atoms: &'a mut Atoms,
    steps: Vec<(Vec<AtomId>, Target, Target)>,
    /// The step that each mark stands for.
    marks: Vec<usize>,
}

impl Layout<'_> {
    fn mark(&mut self) -> usize {
        self.marks.push(usize::MAX);
        self.marks.len() - 1
    }

    fn put(&mut self, mark: usize) {
        self.marks[mark] = self.steps.len();
    }

    /// Lays out a chain; a packet that it does not decide goes on at `bottom`, one that it accepts at `accepted`, if there is more.
    fn chain(&mut self, chain: &Chain, bottom: usize, accepted: Option<usize>, depth: usize) -> Result<(), Trouble> {
        for rule in &chain.rules {
            if rule.action == Action::Continue {
                continue;
            }
            let Some((questions, member)) = self.questions(rule)? else { continue };
            if self.steps.len() > STEPS {
                return Err(Trouble::OutOfReach(format!("chains jump to each other in more than {STEPS} steps")));
            }
            let then = match &rule.action {
                Action::Continue => continue,
                Action::Return => Target::Mark(bottom),
                Action::Jump(name) | Action::Goto(name) => {
                    let Some(called) = self.ruleset.chain(name).filter(|_| depth < DEPTH) else {
                        self.steps.push((questions, Target::End(End::Deny), Target::Next));
                        continue;
                    };
                    let after = self.mark();
                    self.steps.push((questions, Target::Next, Target::Mark(after)));
                    let back = if matches!(rule.action, Action::Goto(_)) { bottom } else { after };
                    self.chain(called, back, accepted, depth + 1)?;
                    self.steps.push((Vec::new(), Target::Mark(back), Target::Mark(back)));
                    self.put(after);
                    continue;
                }
                Action::Accept => match (accepted, member) {
                    (Some(mark), _) => Target::Mark(mark),
                    (None, Some(member)) => Target::End(End::Member(member)),
                    (None, None) => Target::End(End::Allow(self.atoms.label(passed_by(&rule.id)))),
                },
                Action::Drop | Action::Reset | Action::Prohibit => Target::End(End::Deny),
            };
            self.steps.push((questions, then, Target::Next));
        }
        // What falls off the end of a chain goes on at its bottom, wherever that is.
        self.steps.push((Vec::new(), Target::Mark(bottom), Target::Mark(bottom)));
        Ok(())
    }

    fn finish(self) -> Program {
        let mut program = Program { entry: To::Step(0), steps: Vec::with_capacity(self.steps.len()), questions: Vec::new() };
        let marks = &self.marks;
        for (position, (mut questions, then, otherwise)) in self.steps.into_iter().enumerate() {
            let to = |target: Target| match target {
                Target::Next => To::Step(position as u32 + 1),
                Target::Mark(mark) => To::Step(marks[mark] as u32),
                Target::End(end) => To::End(end),
            };
            questions.sort_unstable();
            questions.dedup();
            program.steps.push(Step {
                first: program.questions.len() as u32,
                count: questions.len() as u32,
                then: to(then),
                otherwise: to(otherwise),
            });
            program.questions.extend(questions);
        }
        program.given(|_| Answer::Open)
    }

    /// The questions of a rule, and the one whose element says whose rule it is; `None` when it can never match here.
    fn questions(&mut self, rule: &Rule) -> Result<Option<Asked>, Trouble> {
        let mut questions = Vec::new();
        let mut member = None;
        let last_set = rule.tests.iter().rposition(|test| matches!(test.operator, Operator::In(_)));
        for (position, test) in rule.tests.iter().enumerate() {
            let names = rule.action == Action::Accept && last_set == Some(position);
            match self.test(rule, test, if names { Names::Rule } else { Names::Nothing })? {
                None => return Ok(None),
                Some(asked) => {
                    if names {
                        member = asked.last().copied();
                    }
                    questions.extend(asked);
                }
            }
        }
        for statement in &rule.statements {
            match statement {
                Statement::Limit(_, Side::Below) | Statement::Log { .. } => {}
                Statement::Limit(_, Side::Over) | Statement::Update { carries: Carries::Over(_), .. } => return Ok(None),
                Statement::Update { key, .. } => {
                    for field in key {
                        match self.presence(*field) {
                            None => return Ok(None),
                            Some(asked) => questions.extend(asked),
                        }
                    }
                }
            }
        }
        Ok(Some((questions, member)))
    }

    /// What has to hold so that the field has a value; `None` when it never has one here.
    fn presence(&mut self, field: Field) -> Option<Vec<AtomId>> {
        let mut asked = Vec::new();
        for guard in field.row().guards {
            let (field, value) = guard.test();
            asked.push(self.ask(Dimension::of(field)?, Values::one(value)));
        }
        let direction = self.place.direction();
        let ported = || Values::points([Protocol::TCP, Protocol::UDP].map(|protocol| protocol.0.into()));
        let tracked = || Values::points([ct_state::ESTABLISHED, ct_state::RELATED, ct_state::NEW]);
        match field {
            Field::InputInterface => return (direction != Direction::Out).then_some(asked),
            Field::OutputInterface => return (direction != Direction::In).then_some(asked),
            Field::SocketUser | Field::SocketGroup | Field::SocketCgroup(_) if direction != Direction::Out => return None,
            Field::SocketUser | Field::SocketGroup => asked.push(self.ask(Dimension::Socket, Values::one(1))),
            Field::SocketCgroup(level) => {
                asked.push(self.ask(Dimension::Socket, Values::one(1)));
                let here = self.units_at(level).map(|(value, _)| value).collect::<Vec<_>>();
                asked.push(self.ask(Dimension::Unit, Values::points(here)));
            }
            Field::ConntrackDirection | Field::ConntrackStatus => asked.push(self.ask(Dimension::State, tracked())),
            Field::OriginalDestinationPort => {
                asked.push(self.ask(Dimension::State, tracked()));
                asked.push(self.ask(Dimension::Protocol, ported()));
            }
            Field::TransportDestinationPort => asked.push(self.ask(Dimension::Protocol, ported())),
            Field::SourcePort(protocol) | Field::DestinationPort(protocol) if !protocol.has_ports() => return None,
            _ => {}
        }
        Some(asked)
    }

    fn ask(&mut self, dimension: Dimension, values: Values) -> AtomId {
        let nothing = self.atoms.label("");
        let members = values.intervals().iter().map(|(first, last)| (*first, *last, nothing)).collect();
        self.atoms.intern(Atom { dimension, members })
    }

    /// The values of the units whose control groups lie at this level, with their ids.
    fn units_at(&self, level: u8) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.units.iter().enumerate().filter(move |(_, unit)| unit.level == level).map(|(at, unit)| (at as u128 + 1, unit.id.into()))
    }

    /// The questions of a test, the test itself last; `None` when it never holds here.
    fn test(&mut self, rule: &Rule, test: &Test, names: Names) -> Result<Option<Vec<AtomId>>, Trouble> {
        let field = test.field;
        let Some(mut asked) = self.presence(field) else { return Ok(None) };
        let members = match Dimension::of(field) {
            Some(dimension) => {
                let members = self.members(rule, test, dimension, names)?;
                let domain = if dimension == Dimension::Unit { Values::default() } else { dimension.domain() };
                let all = Values::new(members.iter().map(|member| (member.0, member.1)));
                if !matches!(test.operator, Operator::In(_)) && all.covers(&domain) && !domain.is_empty() {
                    return Ok(Some(asked));
                }
                if members.is_empty() {
                    return Ok(None);
                }
                Atom { dimension, members }
            }
            None => {
                let constant = match field {
                    Field::Everybody => 0,
                    _ if self.place.link() == Link::Loopback => LOOPBACK,
                    _ => OTHER_INTERFACE,
                };
                return Ok(self.holds(field, &test.operator, constant).then_some(asked));
            }
        };
        asked.push(self.atoms.intern(members));
        Ok(Some(asked))
    }

    /// The values that meet a test.
    fn members(&mut self, rule: &Rule, test: &Test, dimension: Dimension, names: Names) -> Result<Vec<(u128, u128, Label)>, Trouble> {
        let nothing = self.atoms.label("");
        let field = test.field;
        let small: Option<Vec<(u128, u128)>> = match (field, dimension) {
            (Field::SocketCgroup(level), _) => Some(self.units_at(level).collect()),
            (_, Dimension::Translated) => Some(vec![(0, 0), (1, STATUS_DNAT)]),
            (_, Dimension::Family | Dimension::State | Dimension::Sender) => {
                Some(dimension.domain().intervals().iter().flat_map(|(first, last)| *first..=*last).map(|value| (value, value)).collect())
            }
            _ if dimension.domain().intervals() == [(0, 255)] => Some((0..=255).map(|value| (value, value)).collect()),
            _ => None,
        };
        if let Operator::In(set) = &test.operator {
            let Some(set) = self.ruleset.sets.get(set) else { return Ok(Vec::new()) };
            let ordered = field.octets() == 1 || !field.host_order();
            if set.def.key.len() != 1 || set.members.iter().any(|(key, member)| key.is_empty() || (member.last.is_some() && !ordered)) {
                return Err(unsupported(rule, test));
            }
            let mut found = Vec::new();
            let mut name = |comment: &str| match names {
                Names::Nothing => nothing,
                Names::Rule => {
                    let id = source(comment).map_or(rule.id.as_str(), |(_, id)| id);
                    self.atoms.label(id)
                }
            };
            if let Some(small) = small {
                for (value, number) in small {
                    if let Some((_, member)) = set.find(&field.encode(number)) {
                        found.push((value, value, name(&member.comment)));
                    }
                }
                return Ok(found);
            }
            for (key, member) in &set.members {
                let Some(first) = field.decode(key) else { continue };
                let last = member.last.as_ref().map_or(Some(first), |last| field.decode(last)).unwrap_or(first);
                found.push((first, last, name(&member.comment)));
            }
            found.sort_unstable();
            return Ok(found);
        }
        if let Some(small) = small {
            let met = small.into_iter().filter(|(_, number)| self.holds(field, &test.operator, *number));
            return Ok(Values::points(met.map(|(value, _)| value)).intervals().iter().map(|(a, b)| (*a, *b, nothing)).collect());
        }
        let values = match &test.operator {
            Operator::Is(number) => Values::one(*number),
            Operator::IsNot(number) => dimension.domain().without(&Values::one(*number)),
            Operator::Within(low, high) => Values::new([(*low, *high)]),
            Operator::HasAny(0) => Values::default(),
            Operator::HasNone(0) => dimension.domain(),
            Operator::HasAny(_) | Operator::HasNone(_) | Operator::In(_) | Operator::IsNamed(_) => return Err(unsupported(rule, test)),
        };
        Ok(values.within(&dimension.domain()).intervals().iter().map(|(first, last)| (*first, *last, nothing)).collect())
    }

    fn holds(&self, field: Field, operator: &Operator, found: u128) -> bool {
        match operator {
            Operator::Is(number) => found == *number,
            Operator::IsNot(number) => found != *number,
            Operator::Within(low, high) => (*low..=*high).contains(&found),
            Operator::HasAny(bits) => found & bits != 0,
            Operator::HasNone(bits) => found & bits == 0,
            Operator::IsNamed(_) => false,
            Operator::In(set) => self.ruleset.sets.get(set).is_some_and(|set| set.find(&field.encode(found)).is_some()),
        }
    }
}

/// What [`End::Allow`] names where a policy that only observes lets pass what it would refuse.
pub const OBSERVED: &str = "observed";

/// The rule that lets pass, or `observed`: the rules that refuse are not told apart.
pub fn passed_by(id: &str) -> &str {
    let refuses = ["refuse-in", "refuse-out", "refuse-forward", "late-answer", "invalid"].contains(&id);
    if refuses { OBSERVED } else { id }
}

/// Whether the element that a packet meets says whose rule it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Rule,
    Nothing,
}

fn unsupported(rule: &Rule, test: &Test) -> Trouble {
    let words = crate::ruleset::text::write_test(test);
    Trouble::NotUnderstood(format!("rule `{}` asks `{words}`, which cuts no interval", rule.id))
}
