//! Where each low-rank factor lies in an adapter's flat buffer.
//!
//! Linear layers that read the same input stand in one group, and the A factors of a group are adjacent: x·Aᵀ of the
//! whole group is then one product instead of three.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::family::Role;

/// Linear layers that share their input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// q, k, v: read the attention norm's output.
    Qkv,
    /// o: reads the attention's output.
    O,
    /// gate, up: read the MLP norm's output.
    GateUp,
    /// down: reads the gated product.
    Down,
}

impl Group {
    /// All groups in the order of the forward pass.
    pub const ALL: [Group; 4] = [Group::Qkv, Group::O, Group::GateUp, Group::Down];

    /// The group of a linear layer.
    ///
    /// # Panics
    /// When the role is no linear layer.
    pub fn of(role: Role) -> Group {
        match role {
            Role::Q | Role::K | Role::V | Role::Qkv => Group::Qkv,
            Role::O => Group::O,
            Role::Gate | Role::Up | Role::GateUp => Group::GateUp,
            Role::Down => Group::Down,
            other => panic!("{other:?} is no linear layer"),
        }
    }

    /// The linear layers that the group has in one family or another.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Group::Qkv => &[Role::Q, Role::K, Role::V, Role::Qkv],
            Group::O => &[Role::O],
            Group::GateUp => &[Role::Gate, Role::Up, Role::GateUp],
            Group::Down => &[Role::Down],
        }
    }
}

/// One adapted linear layer's factors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which linear layer.
    pub role: Role,
    /// Its output width.
    pub rows: usize,
    /// Where its A (R, C_in) lies in the flat buffer, inside the group's stacked A.
    pub a: Range<usize>,
    /// Where its B (C_out, R) lies.
    pub b: Range<usize>,
    /// Its columns in the group's x·Aᵀ.
    pub columns: Range<usize>,
}

impl Member {
    /// Where some rows of its B lie.
    pub(super) fn b_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let rank = self.b.len() / self.rows;
        self.b.start + rows.start * rank..self.b.start + rows.end * rank
    }
}

/// The adapted layers of one group of one decoder layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Input width.
    pub cols: usize,
    /// Rows of the stacked A: R times the number of members.
    pub width: usize,
    /// Where the stacked A (width, cols) lies in the flat buffer.
    pub a: Range<usize>,
    /// The members in the order of [`Group::roles`]; those that are no target are absent.
    pub members: Vec<Member>,
}

impl Stack {
    /// The factors of one linear layer, if it is a target.
    pub fn member(&self, role: Role) -> Option<&Member> {
        self.members.iter().find(|member| member.role == role)
    }
}

/// All factors of an adapter: layer by layer, group by group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    stacks: Vec<[Stack; 4]>,
    len: usize,
}

impl Layout {
    /// Places the factors of rank `rank` for the `targets` of a model.
    pub fn new(config: &ModelConfig, rank: usize, targets: &[Role]) -> Self {
        let mut len = 0;
        let stacks = (0..config.n_layers)
            .map(|_| Group::ALL.map(|g| stack(config, rank, targets, g, &mut len)))
            .collect();
        Self { stacks, len }
    }

    /// The factors of one group of one layer.
    pub fn stack(&self, layer: usize, group: Group) -> &Stack {
        &self.stacks[layer][group as usize]
    }

    /// Weights in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is adapted.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Decoder layers.
    pub fn n_layers(&self) -> usize {
        self.stacks.len()
    }

    /// Every adapted linear layer: layer index, input width, factors.
    pub fn members(&self) -> impl Iterator<Item = (usize, usize, &Member)> {
        let layers = self.stacks.iter().enumerate();
        layers.flat_map(|(i, groups)| {
            groups.iter().flat_map(move |stack| stack.members.iter().map(move |m| (i, stack.cols, m)))
        })
    }
}

fn stack(config: &ModelConfig, rank: usize, targets: &[Role], group: Group, len: &mut usize) -> Stack {
    let is_adapted = |role: &Role| targets.contains(role) && config.family.has(*role);
    let roles: Vec<Role> = group.roles().iter().copied().filter(is_adapted).collect();
    let cols = config.shape(group.roles()[0]).1;
    let start = *len;
    let a_end = start + roles.len() * rank * cols;
    let mut next_b = a_end;
    let members = roles.iter().enumerate().map(|(i, &role)| {
        let rows = config.shape(role).0;
        let b = next_b..next_b + rows * rank;
        next_b = b.end;
        let a = start + i * rank * cols..start + (i + 1) * rank * cols;
        Member { role, rows, a, b, columns: i * rank..(i + 1) * rank }
    });
    let members = members.collect();
    *len = next_b;
    Stack { cols, width: roles.len() * rank, a: start..a_end, members }
}
