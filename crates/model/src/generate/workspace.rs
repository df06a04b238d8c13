//! The forward pass of decoding: rows of any of the sequences through all layers, keys and values into the cache.
//!
//! The same layers as in training, without what a backward needs and with a cache instead of a packed batch. All
//! memory is drawn once; a token allocates nothing on the device.

use super::sizes::{Part, Sizes, kv_width};
use crate::Result;
use crate::base::{Base, Layer};
use crate::config::ModelConfig;
use crate::device::{BlockMatrix, Buffer, Device, Heads, Rotation, Segment, View, ViewMut, Write};
use crate::family::Role;
use crate::lora::{Adapter, Group};

/// One token to be read: what, and where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub token: u32,
    pub position: u32,
    pub cache_row: u32,
}

/// Keys and values of one layer, each (S·T, K·D).
struct Cache<B> {
    keys: B,
    values: B,
}

/// All memory of a generator.
pub(super) struct Workspace<D: Device> {
    device: D,
    pub sizes: Sizes,
    cache: Vec<Cache<D::Buffer>>,
    stream: D::Buffer,
    normed: D::Buffer,
    queries: D::Buffer,
    keys: D::Buffer,
    values: D::Buffer,
    attended: D::Buffer,
    log_sums: D::Buffer,
    projected: D::Buffer,
    gate: D::Buffer,
    up: D::Buffer,
    gated: D::Buffer,
    picked: [D::Buffer; 2],
    logits: D::Buffer,
    folds: [D::Buffer; 3],
    cos: D::Buffer,
    sin: D::Buffer,
    tokens: D::Indices,
    positions: D::Indices,
    cache_rows: D::Indices,
    logit_rows: D::Indices,
    targets: D::Indices,
    host_indices: Vec<u32>,
}

impl<D: Device> Workspace<D> {
    pub fn new(device: &D, config: &ModelConfig, sizes: Sizes) -> Result<Self> {
        let part = |part: Part| device.alloc("decoding workspace", part.len(&sizes, config));
        let indices = |len| device.alloc_indices("decoding indices", len);
        let fold = || device.alloc("decoding workspace", sizes.logit_rows);
        let picked = || device.alloc("decoding workspace", sizes.logit_rows * config.hidden);
        let cache_len = sizes.cache_rows * kv_width(config);
        let cache = |_| -> Result<_> {
            let (keys, values) =
                (device.alloc("key cache", cache_len)?, device.alloc("value cache", cache_len)?);
            Ok(Cache { keys, values })
        };
        let (cos, sin) = config.rope.tables(config.head_dim, sizes.positions);
        let mut workspace = Workspace {
            device: device.clone(),
            sizes,
            cache: (0..config.n_layers).map(cache).collect::<Result<_>>()?,
            stream: part(Part::Stream)?,
            normed: part(Part::Normed)?,
            queries: part(Part::Queries)?,
            keys: part(Part::Keys)?,
            values: part(Part::Values)?,
            attended: part(Part::Attended)?,
            log_sums: part(Part::LogSums)?,
            projected: part(Part::Projected)?,
            gate: part(Part::Gate)?,
            up: part(Part::Up)?,
            gated: part(Part::Gated)?,
            picked: [picked()?, picked()?],
            logits: part(Part::Logits)?,
            folds: [fold()?, fold()?, fold()?],
            cos: part(Part::Cos)?,
            sin: part(Part::Sin)?,
            tokens: indices(sizes.rows)?,
            positions: indices(sizes.rows)?,
            cache_rows: indices(sizes.rows)?,
            logit_rows: indices(sizes.logit_rows)?,
            targets: indices(sizes.logit_rows)?,
            host_indices: Vec::with_capacity(sizes.rows.max(sizes.logit_rows)),
        };
        device.upload(&cos, workspace.cos.all_mut())?;
        device.upload(&sin, workspace.sin.all_mut())?;
        Ok(workspace)
    }

    /// Reads the rows, which are consecutive tokens of the sequences that `segments` name, into cache and stream.
    pub fn read(
        &mut self,
        base: &Base<D>,
        adapter: Option<&Adapter<D>>,
        rows: &[Row],
        segments: &[Segment],
    ) -> Result<()> {
        let n = rows.len();
        self.upload_rows(rows)?;
        let stream = self.stream.first_mut(n * base.config.hidden);
        self.device.embed(&base.embedding, self.tokens.first(n), stream)?;
        for (index, layer) in base.layers.iter().enumerate() {
            self.attend(&base.config, layer, index, adapter, n, segments)?;
            self.feed_forward(&base.config, layer, index, adapter, n)?;
        }
        Ok(())
    }

    fn upload_rows(&mut self, rows: &[Row]) -> Result<()> {
        let n = rows.len();
        let host = &mut self.host_indices;
        let mut upload = |field: fn(&Row) -> u32, to: &mut D::Indices| {
            host.clear();
            host.extend(rows.iter().map(field));
            self.device.upload_indices(host, to.first_mut(n))
        };
        upload(|row| row.token, &mut self.tokens)?;
        upload(|row| row.position, &mut self.positions)?;
        upload(|row| row.cache_row, &mut self.cache_rows)
    }

    /// stream += Wo · attention(norm(stream))
    fn attend(
        &mut self,
        config: &ModelConfig,
        layer: &Layer<D>,
        index: usize,
        adapter: Option<&Adapter<D>>,
        n: usize,
        segments: &[Segment],
    ) -> Result<()> {
        let (c, d, kv) = (config.hidden, config.head_dim, kv_width(config));
        let heads = Heads { n_heads: config.n_heads, n_kv_heads: config.n_kv_heads, head_dim: d };
        let q_width = config.n_heads * d;
        let device = &self.device;
        let normed = self.normed.first_mut(n * c);
        device.rms_norm(self.stream.first(n * c), layer.attn_norm.all(), config.rms_eps, normed)?;
        let input = self.normed.first(n * c);
        if let Some(adapter) = adapter {
            let width = adapter.width(index, Group::Qkv);
            adapter.project(index, Group::Qkv, n, input, self.projected.first_mut(n * width))?;
        }
        let u = &self.projected;
        let project = |role: Role, to: ViewMut<'_, D::Buffer>| {
            linear(device, layer, index, role, n, input, adapter.map(|adapter| (adapter, u)), Write::Set, to)
        };
        match (&layer.q_norm, &layer.k_norm) {
            (Some(q_norm), Some(k_norm)) => {
                // The un-normed heads pass through the buffer that attention fills later.
                project(Role::Q, self.attended.first_mut(n * q_width))?;
                let (raw, to) = (self.attended.first(n * q_width), self.queries.first_mut(n * q_width));
                device.rms_norm(raw, q_norm.all(), config.rms_eps, to)?;
                project(Role::K, self.attended.first_mut(n * kv))?;
                let (raw, to) = (self.attended.first(n * kv), self.keys.first_mut(n * kv));
                device.rms_norm(raw, k_norm.all(), config.rms_eps, to)?;
            }
            _ => {
                project(Role::Q, self.queries.first_mut(n * q_width))?;
                project(Role::K, self.keys.first_mut(n * kv))?;
            }
        }
        project(Role::V, self.values.first_mut(n * kv))?;
        let (positions, cos, sin) = (self.positions.first(n), self.cos.all(), self.sin.all());
        let queries = self.queries.first_mut(n * q_width);
        device.rope(queries, config.n_heads, d, positions, cos, sin, Rotation::Forward)?;
        let keys = self.keys.first_mut(n * kv);
        device.rope(keys, config.n_kv_heads, d, positions, cos, sin, Rotation::Forward)?;
        let cache = &mut self.cache[index];
        let at = self.cache_rows.first(n);
        device.scatter_rows(self.keys.first(n * kv), kv, at, cache.keys.all_mut())?;
        device.scatter_rows(self.values.first(n * kv), kv, at, cache.values.all_mut())?;
        let (queries, out) = (self.queries.first(n * q_width), self.attended.first_mut(n * q_width));
        let log_sums = self.log_sums.first_mut(n * config.n_heads);
        device.attention(heads, segments, queries, cache.keys.all(), cache.values.all(), out, log_sums)?;
        let input = self.attended.first(n * q_width);
        if let Some(adapter) = adapter {
            let width = adapter.width(index, Group::O);
            adapter.project(index, Group::O, n, input, self.projected.first_mut(n * width))?;
        }
        let update = adapter.map(|adapter| (adapter, &self.projected));
        linear(device, layer, index, Role::O, n, input, update, Write::Add, self.stream.first_mut(n * c))
    }

    /// stream += Wdown · (silu(Wgate · h) · (Wup · h)), h = norm(stream)
    fn feed_forward(
        &mut self,
        config: &ModelConfig,
        layer: &Layer<D>,
        index: usize,
        adapter: Option<&Adapter<D>>,
        n: usize,
    ) -> Result<()> {
        let (c, f) = (config.hidden, config.intermediate);
        let device = &self.device;
        let normed = self.normed.first_mut(n * c);
        device.rms_norm(self.stream.first(n * c), layer.ffn_norm.all(), config.rms_eps, normed)?;
        let input = self.normed.first(n * c);
        if let Some(adapter) = adapter {
            let width = adapter.width(index, Group::GateUp);
            adapter.project(index, Group::GateUp, n, input, self.projected.first_mut(n * width))?;
        }
        let update = adapter.map(|adapter| (adapter, &self.projected));
        linear(device, layer, index, Role::Gate, n, input, update, Write::Set, self.gate.first_mut(n * f))?;
        linear(device, layer, index, Role::Up, n, input, update, Write::Set, self.up.first_mut(n * f))?;
        device.swiglu(self.gate.first(n * f), self.up.first(n * f), self.gated.first_mut(n * f))?;
        let input = self.gated.first(n * f);
        if let Some(adapter) = adapter {
            let width = adapter.width(index, Group::Down);
            adapter.project(index, Group::Down, n, input, self.projected.first_mut(n * width))?;
        }
        let update = adapter.map(|adapter| (adapter, &self.projected));
        linear(device, layer, index, Role::Down, n, input, update, Write::Add, self.stream.first_mut(n * c))
    }

    /// Logits (|rows|, V) of some rows of the pass before.
    fn project_logits(&mut self, base: &Base<D>, rows: &[u32]) -> Result<()> {
        let (c, v, n) = (base.config.hidden, base.config.vocab_size, rows.len());
        let device = &self.device;
        device.upload_indices(rows, self.logit_rows.first_mut(n))?;
        let [picked, normed] = &mut self.picked;
        device.gather_rows(self.stream.all(), c, self.logit_rows.first(n), picked.first_mut(n * c))?;
        let gain = base.output_norm.all();
        device.rms_norm(picked.first(n * c), gain, base.config.rms_eps, normed.first_mut(n * c))?;
        device.linear(normed.first(n * c), base.head(), 0..v, Write::Set, self.logits.first_mut(n * v))
    }

    /// Copies the logits of some rows (at most [`Sizes::logit_rows`]) of the pass before to the host.
    pub fn logits(&mut self, base: &Base<D>, rows: &[u32], to: &mut [f32]) -> Result<()> {
        self.project_logits(base, rows)?;
        self.device.download(self.logits.first(to.len()), to)
    }

    /// Σ -ln p(target) over the first rows of the pass before, one target a row.
    pub fn sum_nll(&mut self, base: &Base<D>, targets: &[u32]) -> Result<f64> {
        let mut sum = 0.0;
        for (tile, targets) in targets.chunks(self.sizes.logit_rows).enumerate() {
            let first = tile * self.sizes.logit_rows;
            let rows: Vec<u32> = (first..first + targets.len()).map(|row| row as u32).collect();
            self.project_logits(base, &rows)?;
            sum += self.fold(base.config.vocab_size, targets)?;
        }
        Ok(sum)
    }

    fn fold(&mut self, v: usize, targets: &[u32]) -> Result<f64> {
        let n = targets.len();
        let device = &self.device;
        let [max, sum, target_logit] = &mut self.folds;
        device.upload_indices(targets, self.targets.first_mut(n))?;
        device.fill(f32::NEG_INFINITY, max.first_mut(n))?;
        device.fill(0.0, sum.first_mut(n))?;
        device.fill(0.0, target_logit.first_mut(n))?;
        let (logits, targets) = (self.logits.first(n * v), self.targets.first(n));
        device.softmax_fold(
            logits,
            0,
            targets,
            max.first_mut(n),
            sum.first_mut(n),
            target_logit.first_mut(n),
        )?;
        let mut host = [vec![0.0; n], vec![0.0; n], vec![0.0; n]];
        for (from, to) in self.folds.iter().zip(&mut host) {
            device.download(from.first(n), to)?;
        }
        let [max, sum, target_logit] = host;
        let nll = |i: usize| f64::from(max[i]) + f64::from(sum[i]).ln() - f64::from(target_logit[i]);
        Ok((0..n).map(nll).sum())
    }
}

/// to (=|+=) x · Wᵀ + s · u · Bᵀ for one linear layer, u = x · Aᵀ being there already.
#[allow(clippy::too_many_arguments)]
fn linear<D: Device>(
    device: &D,
    layer: &Layer<D>,
    index: usize,
    role: Role,
    n: usize,
    input: View<'_, D::Buffer>,
    update: Option<(&Adapter<D>, &D::Buffer)>,
    write: Write,
    mut to: ViewMut<'_, D::Buffer>,
) -> Result<()> {
    let weights = layer.linear(role);
    device.linear(input, weights, 0..weights.rows(), write, to.reborrow())?;
    match update {
        Some((adapter, u)) => adapter.add_update(index, role, n, u.all(), to),
        None => Ok(()),
    }
}
