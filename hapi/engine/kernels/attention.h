// Attention of compiled programs: softmax(scale * query * key^T) * value for each sample and head, in blocks of rows that
// stay in the cache.

namespace hapi {

constexpr int64_t MOST_ROWS = 64;

// (count, width) to (width, line).
HAPI_HOT inline void transpose(
    const float* from, int64_t stride, int64_t count, int64_t width, float* to, int64_t line) {
  for (int64_t row = 0; row < count; row += LANES) {
    for (int64_t column = 0; column < width; column += LANES) {
      at::vec::transpose_mxn<float>(
          from + row * stride + column, stride, to + column * line + row, line,
          static_cast<int>(std::min(LANES, count - row)), static_cast<int>(std::min(LANES, width - column)));
    }
  }
}

// (count, width) with each two rows interleaved, the layout that products of bfloat16 want: (count / 2, width, 2).
HAPI_HOT inline void interleave(
    const at::BFloat16* from, int64_t stride, int64_t count, int64_t width, at::BFloat16* to) {
  auto pairs = reinterpret_cast<uint32_t*>(to);
  for (int64_t row = 0; row < count; row += 2, pairs += width) {
    auto first = reinterpret_cast<const uint16_t*>(from + row * stride), second = first + stride;
    int64_t column = 0;
    if (row + 1 == count) {
      std::copy_n(first, width, pairs);
      continue;
    }
#if defined(CPU_CAPABILITY_AVX512)
    for (; column + 16 <= width; column += 16) {
      const auto low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first + column));
      const auto high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second + column));
      _mm512_storeu_si512(
          pairs + column,
          _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
    }
#endif
    for (; column < width; column++)
      pairs[column] = first[column] | static_cast<uint32_t>(second[column]) << 16;
  }
}

// exp(scale * (row - its largest)), followed by zeros up to a multiple of LANES, and the sum of it.
HAPI_HOT inline float exponentials(float* row, int64_t count, float scale) {
  const int64_t whole = count / LANES * LANES, rest = count - whole;
  Vec largest(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < whole; i += LANES)
    largest = at::vec::maximum(largest, Vec::loadu(row + i));
  if (rest)
    largest = Vec::set(largest, at::vec::maximum(largest, Vec::loadu(row + whole, rest)), rest);
  const Vec factor(scale);
  const Vec shift(scale * at::vec::vec_reduce_all<float, 1>(
      [](Vec& one, Vec& other) { return at::vec::maximum(one, other); }, largest));
  Vec sum(0.f);
  for (int64_t i = 0; i < whole; i += LANES) {
    const Vec found = (Vec::loadu(row + i) * factor - shift).exp_u20();
    found.store(row + i);
    sum = sum + found;
  }
  if (rest) {
    const Vec found = Vec::set(Vec(0.f), (Vec::loadu(row + whole, rest) * factor - shift).exp_u20(), rest);
    found.store(row + whole);
    sum = sum + found;
  }
  return at::vec::vec_reduce_all<float, 1>([](Vec& one, Vec& other) { return one + other; }, sum);
}

HAPI_HOT inline void multiply(float* row, int64_t count, float number) {
  const Vec factor(number);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    (Vec::loadu(row + i) * factor).store(row + i);
  if (i < count)
    (Vec::loadu(row + i, count - i) * factor).store(row + i, count - i);
}

template <typename Number>
struct Attention {
  static constexpr bool IS_EXACT = std::is_same_v<Number, float>;

  Tensor<const Number> query, key, value; // (B, H, T, D), D contiguous
  float scale;
  Number* result; // (B, T, H, width)
  int64_t heads, tokens, keys, width, depth, line, block;

  Attention(AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, double scale)
      : query(query), key(key), value(value), scale(static_cast<float>(scale)), result(nullptr) {
    heads = this->query.sizes[1], tokens = this->query.sizes[2], depth = this->query.sizes[3];
    keys = this->key.sizes[2], width = this->value.sizes[3];
    line = rounded_up(keys, 2 * LANES);
    block = parts(tokens, parts(tokens, MOST_ROWS));
  }

  static const Number* at(const Tensor<const Number>& of, int64_t sample, int64_t head) {
    return of.data + sample * of.strides[0] + head * of.strides[1];
  }

  // What one thread needs beside the tensors.
  struct Room {
    std::vector<float> scores, mixed;
    std::vector<Number> columns, weights, rows;

    explicit Room(const Attention& of) : scores(of.block * of.line), columns(of.depth * of.line) {
      if constexpr (!IS_EXACT) {
        mixed.resize(of.block * of.width);
        weights.resize(of.block * of.line);
        rows.resize(of.line * of.width);
      }
    }
  };

  void run(int64_t sample, int64_t head, Room& room) const {
    const Number *queries = at(query, sample, head), *values = at(value, sample, head);
    float *scores = room.scores.data(), sums[MOST_ROWS];
    if constexpr (IS_EXACT) {
      transpose(at(key, sample, head), key.strides[2], keys, depth, room.columns.data(), line);
    } else { // pairs of numbers are what is transposed, and so they are interleaved
      transpose(
          reinterpret_cast<const float*>(at(key, sample, head)), key.strides[2] / 2, keys, depth / 2,
          reinterpret_cast<float*>(room.columns.data()), line);
      interleave(values, value.strides[2], keys, width, room.rows.data());
    }
    for (int64_t first = 0; first < tokens; first += block) {
      const int64_t count = std::min(block, tokens - first);
      Number* to = result + ((sample * tokens + first) * heads + head) * width;
      at::native::cpublas::brgemm(
          count, keys, depth, query.strides[2], line, line, false, queries + first * query.strides[2],
          room.columns.data(), scores, !IS_EXACT);
      for (int64_t row = 0; row < count; row++)
        sums[row] = exponentials(scores + row * line, keys, scale);
      if constexpr (IS_EXACT) {
        at::native::cpublas::brgemm(
            count, width, keys, line, value.strides[2], heads * width, false, scores, values, to, false);
        for (int64_t row = 0; row < count; row++)
          multiply(to + row * heads * width, width, 1.f / sums[row]);
      } else {
        const int64_t even = rounded_up(keys, 2);
        for (int64_t row = 0; row < count; row++)
          at::vec::convert(scores + row * line, room.weights.data() + row * line, line);
        at::native::cpublas::brgemm(
            count, width, even, line, width, width, false, room.weights.data(), room.rows.data(),
            room.mixed.data(), true);
        for (int64_t row = 0; row < count; row++) {
          multiply(room.mixed.data() + row * width, width, 1.f / sums[row]);
          at::vec::convert(room.mixed.data() + row * width, to + row * heads * width, width);
        }
      }
    }
  }

  // Whether it was done.
  bool run() const {
    std::atomic<bool> is_done{true}; // an exception must not leave a parallel region
#pragma omp parallel num_threads(HAPI_THREADS)
    try {
      Room room(*this);
#pragma omp for collapse(2) nowait
      for (int64_t sample = 0; sample < query.sizes[0]; sample++)
        for (int64_t head = 0; head < heads; head++)
          run(sample, head, room);
      at::native::cpublas::brgemm_release(!IS_EXACT);
    } catch (...) {
      is_done = false;
    }
    return is_done;
  }
};

template <typename Number>
bool attend(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, double scale, int32_t dtype,
    AtenTensorHandle* result) {
  Attention<Number> attention(query, key, value, scale);
  const int64_t batch = attention.query.sizes[0], tokens = attention.tokens, heads = attention.heads;
  const int64_t width = attention.width;
  attention.result = Tensor<Number>(
      result, {batch, heads, tokens, width}, {tokens * heads * width, width, heads * width, 1}, dtype).data;
  return attention.run();
}

} // namespace hapi

extern "C" inline AOTITorchError aoti_torch_cpu_fused_attention(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, double scale, AtenTensorHandle* result) {
  try {
    const int32_t dtype = hapi::dtype_of(query);
    const bool is_done = dtype == aoti_torch_dtype_bfloat16()
        ? hapi::attend<at::BFloat16>(query, key, value, scale, dtype, result)
        : hapi::attend<float>(query, key, value, scale, dtype, result);
    return is_done ? AOTI_TORCH_SUCCESS : AOTI_TORCH_FAILURE;
  } catch (...) {
    return AOTI_TORCH_FAILURE;
  }
}
