//! Where each low-rank factor lies in an adapter's flat buffer.
//!
//! Linear layers that read the same input stand in one group, and the A factors of a group are adjacent: x·Aᵀ of the
//! whole group is then one product instead of three.

use std::ops::Range;

use super::LoraOptions;
use crate::config::ModelConfig;
use crate::family::Role;

/// Linear layers that share their input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// q, k, v, or q and what a latent is made by: read the attention norm's output.
    Qkv,
    /// o: reads the attention's output.
    O,
    /// gate, up: read the MLP norm's output.
    GateUp,
    /// down: reads the gated product.
    Down,
    /// in: reads the norm before a state-space mixer.
    SsmIn,
    /// Keys and values from a latent: reads its norm's output.
    KvB,
}

impl Group {
    /// All groups in the order of the forward pass.
    pub const ALL: [Group; 6] = [Group::Qkv, Group::O, Group::GateUp, Group::Down, Group::SsmIn, Group::KvB];

    /// The group of a linear layer.
    ///
    /// # Panics
    /// When the role is no linear layer.
    pub fn of(role: Role) -> Group {
        match role {
            Role::Q | Role::K | Role::V | Role::Qkv | Role::KvA => Group::Qkv,
            Role::O => Group::O,
            Role::Gate | Role::Up | Role::GateUp => Group::GateUp,
            Role::Down => Group::Down,
            Role::SsmIn => Group::SsmIn,
            Role::KvB => Group::KvB,
            other => panic!("{other:?} is no linear layer"),
        }
    }

    /// The linear layers that the group has in one family or another.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Group::Qkv => &[Role::Q, Role::K, Role::V, Role::Qkv, Role::KvA],
            Group::O => &[Role::O],
            Group::GateUp => &[Role::Gate, Role::Up, Role::GateUp],
            Group::Down => &[Role::Down],
            Group::SsmIn => &[Role::SsmIn],
            Group::KvB => &[Role::KvB],
        }
    }
}

/// One adapted linear layer's factors.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Which linear layer.
    pub role: Role,
    /// Its output width.
    pub rows: usize,
    /// R
    pub rank: usize,
    /// s
    pub scale: f32,
    /// Where its A (R, C_in) lies in the flat buffer, inside the group's stacked A.
    pub a: Range<usize>,
    /// Where its B (C_out, R) lies.
    pub b: Range<usize>,
    /// Its columns in the group's x·Aᵀ.
    pub columns: Range<usize>,
    /// Where the trained lengths (C_out) of its rows lie, with DoRA.
    pub magnitude: Option<Range<usize>>,
    /// Where what an update adds to the two elastic connections lies until it is spread.
    pub elastic: Option<Range<usize>>,
    /// Its rows among those of all adapted layers.
    pub outputs: Range<usize>,
}

impl Member {
    /// Where some rows of its B lie.
    pub(super) fn b_rows(&self, rows: &Range<usize>) -> Range<usize> {
        self.b.start + rows.start * self.rank..self.b.start + rows.end * self.rank
    }
}

/// The adapted layers of one group of one decoder layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    /// Input width.
    pub cols: usize,
    /// Rows of the stacked A: the members' R added up.
    pub width: usize,
    /// Where the stacked A (width, cols) lies in the flat buffer.
    pub a: Range<usize>,
    /// Where everything else lies, right behind it: the members' B, then their lengths, then their connections.
    pub rest: Range<usize>,
    /// The members in the order of [`Group::roles`]; those that are no target are absent.
    pub members: Vec<Member>,
}

impl Stack {
    /// The factors of one linear layer, if it is a target.
    pub fn member(&self, role: Role) -> Option<&Member> {
        self.members.iter().find(|member| member.role == role)
    }
}

/// Columns that an adapter takes beside the base's activations, for each row of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Widths {
    /// Of x·Aᵀ, the widest layer's, by [`Group`].
    pub low_rank: [usize; Group::ALL.len()],
    /// Of a copy of the input or the output of a linear layer of attention or mixer, 0 where none is made.
    pub attention_copy: usize,
    /// Of the same for the MLP.
    pub mlp_copy: usize,
}

impl Widths {
    /// x·Aᵀ of a group.
    pub fn of(&self, group: Group) -> usize {
        self.low_rank[group as usize]
    }

    /// x·Aᵀ of any group.
    pub fn widest(&self) -> usize {
        self.low_rank.into_iter().max().unwrap_or(0)
    }

    /// Whether what `other` takes is there.
    pub fn cover(&self, other: &Widths) -> bool {
        let low_rank = self.low_rank.iter().zip(&other.low_rank).all(|(ours, theirs)| ours >= theirs);
        low_rank && self.attention_copy >= other.attention_copy && self.mlp_copy >= other.mlp_copy
    }
}

/// All factors of an adapter: layer by layer, group by group.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    stacks: Vec<[Stack; Group::ALL.len()]>,
    len: usize,
    n_outputs: usize,
}

impl Layout {
    /// Places the factors that the options ask for.
    pub fn new(config: &ModelConfig, options: &LoraOptions) -> Self {
        let mut layout = Self { stacks: Vec::with_capacity(config.n_layers), len: 0, n_outputs: 0 };
        for layer in 0..config.n_layers {
            let stacks = Group::ALL.map(|group| layout.place(config, options, layer, group));
            layout.stacks.push(stacks);
        }
        layout
    }

    /// The factors of one group of one layer.
    pub fn stack(&self, layer: usize, group: Group) -> &Stack {
        &self.stacks[layer][group as usize]
    }

    /// All stacks, in the flat buffer's order.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.stacks.iter().flatten()
    }

    /// Weights in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is adapted.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Output features of all adapted layers together.
    pub fn n_outputs(&self) -> usize {
        self.n_outputs
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

    /// What the adapter takes for each row of a batch.
    pub fn widths(&self, options: &LoraOptions) -> Widths {
        let mut widths = Widths::default();
        for (index, groups) in self.stacks.iter().flat_map(|groups| groups.iter().enumerate()) {
            widths.low_rank[index] = widths.low_rank[index].max(groups.width);
            let outputs = groups.members.iter().map(|member| member.rows).max().unwrap_or(0);
            let input = if groups.members.is_empty() { 0 } else { groups.cols };
            let copy = [(options.dropout > 0.0, input), (options.dora, outputs)];
            let copy = copy.into_iter().filter(|(is_made, _)| *is_made).map(|(_, width)| width);
            let is_attention = [Group::Qkv, Group::O, Group::SsmIn, Group::KvB].contains(&Group::ALL[index]);
            let to = if is_attention { &mut widths.attention_copy } else { &mut widths.mlp_copy };
            *to = copy.fold(*to, usize::max);
        }
        widths
    }

    fn place(&mut self, config: &ModelConfig, options: &LoraOptions, layer: usize, group: Group) -> Stack {
        let cols = config.shape(group.roles()[0], Some(layer)).1;
        let adapted = group.roles().iter().filter(|role| config.family.has(**role));
        let adapted = adapted.filter_map(|&role| Some((role, options.shape(layer, role)?)));
        let start = self.len;
        let (mut members, mut width) = (Vec::new(), 0);
        for (role, (rank, scale)) in adapted {
            let (rows, columns) = (config.shape(role, Some(layer)).0, width..width + rank);
            let a = start + columns.start * cols..start + columns.end * cols;
            let outputs = self.n_outputs..self.n_outputs + rows;
            (width, self.n_outputs) = (columns.end, outputs.end);
            members.push(Member {
                role,
                rows,
                rank,
                scale,
                a,
                b: 0..0,
                columns,
                magnitude: None,
                elastic: None,
                outputs,
            });
        }
        let a = self.take(width * cols);
        for member in &mut members {
            member.b = self.take(member.rows * member.rank);
        }
        for member in members.iter_mut().filter(|_| options.dora) {
            member.magnitude = Some(self.take(member.rows));
        }
        for member in members.iter_mut().filter(|_| options.elastic) {
            member.elastic = Some(self.take(2));
        }
        Stack { cols, width, rest: a.end..self.len, a, members }
    }

    /// The next `len` places of the flat buffer.
    fn take(&mut self, len: usize) -> Range<usize> {
        let start = self.len;
        self.len += len;
        start..self.len
    }
}
