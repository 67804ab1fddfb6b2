// Convolutions of compiled programs by Winograd's minimal filtering, F(2x2, 3x3) of Lavin and Gray 2015 (arXiv:1509.09308):
// images are cut in tiles of 4x4 that overlap by 2, and 16 products of matrices, one for each place in a tile, give
// 2x2 pixels of the result with 16 multiplications for each pair of channels instead of 36. Sums are shorter, so in
// float32 it is no less exact than what it replaces; in bfloat16 tiles are rounded once more.
//
// A larger kernel is cut in parts of 3x3, whose products have the same sums: one of 5 in parts of 3 and 2. A part of
// fewer than 3 is none of the last of its 4 places, so that 5x5 take 49 multiplications instead of 100.
//
// Tiles are taken in blocks that stay in the cache. The weights come as convolution.py packs them.

namespace hapi {

constexpr int64_t TILE = 4, STEP = 2, PART = 3, PLACES = TILE * TILE;
constexpr int64_t PANEL = 64; // channels of the result that are computed at once, as in convolution.py
constexpr int64_t MOST_TILES = 96, LEAST_TILES = 32;
constexpr int64_t ROWS = 6; // that products compute at once: a block has a multiple of it
constexpr int64_t SHIFT = 16; // numbers between what belongs to two places, which else would share lines of the cache
constexpr int64_t AHEAD = 4; // pixels, of what is fetched before it is read

inline Vec load(const float* from) {
  return Vec::loadu(from);
}

inline Vec load(const at::BFloat16* from) {
  __m512 found;
  at::vec::cvtbf16_fp32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), found);
  return found;
}

inline void store(const Vec& found, float* to) {
  found.store(to);
}

inline void store(const Vec& found, at::BFloat16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), at::vec::cvtfp32_bf16(found));
}

// Numbers that are not set before they are used, at the beginning of a line of the cache.
template <typename Number>
class Room {
  static constexpr std::align_val_t LINE{64};
  Number* numbers;

 public:
  explicit Room(int64_t count) : numbers(static_cast<Number*>(::operator new(count * sizeof(Number), LINE))) {}
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() {
    ::operator delete(numbers, LINE);
  }
  operator Number*() const {
    return numbers;
  }
};

// One dimension of the image and of the kernel.
struct Side {
  int64_t image, kernel, padding;
  int64_t result, tiles; // pixels, tiles
  int64_t all, whole; // parts of the kernel, and those of them that are 3 long

  Side(int64_t image, int64_t kernel, int64_t padding)
      : image(image), kernel(kernel), padding(padding), result(image + 2 * padding - kernel + 1),
        tiles(parts(result, STEP)), all(parts(kernel, PART)), whole(kernel / PART) {}

  // Of the parts, how many have this place.
  int64_t having(int64_t place) const {
    return place + 1 < TILE ? all : whole;
  }
  // How many places this part has.
  int64_t places(int64_t part) const {
    return part < whole ? TILE : TILE - 1;
  }
};

template <typename Number>
struct Convolution {
  static constexpr bool IS_EXACT = std::is_same_v<Number, float>;

  const Number *image, *weight, *other; // (B, H, W, C); see convolution.py; as the result, or none
  const float* bias;
  Number* result; // (B, H', W', O)
  bool is_rectified;
  int64_t batch, channels, outs;
  Side down, across;
  int64_t tiles, block;
  int64_t depths[PLACES], spots[PLACES], starts[PLACES]; // of each place: length of a row; where its numbers start, of
  // a block's tiles and of a panel's weights
  int64_t spread_numbers, panel_numbers; // of all places

  void lay_out() {
    tiles = batch * down.tiles * across.tiles;
    const int64_t share = std::max(parts(tiles, HAPI_THREADS), LEAST_TILES);
    block = rounded_up(std::min(share, MOST_TILES), ROWS);
    int64_t spot = 0, start = 0;
    for (int64_t place = 0; place < PLACES; place++) {
      depths[place] = down.having(place / TILE) * across.having(place % TILE) * channels;
      spots[place] = spot, starts[place] = start;
      spot += block * depths[place] + SHIFT;
      start += depths[place] * PANEL;
    }
    spread_numbers = spot, panel_numbers = start;
  }

  struct Tile {
    int64_t sample, row, column; // of the first pixel of the result
  };

  Tile tile(int64_t number) const {
    const int64_t each = down.tiles * across.tiles;
    return {number / each, number % each / across.tiles * STEP, number % across.tiles * STEP};
  }

  // One part of the kernel's tiles, transformed: at each place a matrix (tiles, depth).
  HAPI_HOT void spread(
      int64_t first, int64_t count, int64_t part_down, int64_t part_across, const Number* zeros, Number* to) const {
    const bool is_high = down.places(part_down) == TILE, is_wide = across.places(part_across) == TILE;
    int64_t shifts[PLACES];
    for (int64_t place = 0; place < PLACES; place++)
      shifts[place] = spots[place] + (part_down * across.having(place % TILE) + part_across) * channels;
    for (int64_t number = 0; number < count; number++) {
      const Tile at = tile(first + number);
      const int64_t top = at.row - down.padding + PART * part_down, left = at.column - across.padding + PART * part_across;
      const Number* from[PLACES];
      for (int64_t place = 0; place < PLACES; place++) {
        const int64_t row = top + place / TILE, column = left + place % TILE;
        const bool is_inside = row >= 0 && row < down.image && column >= 0 && column < across.image;
        from[place] =
            is_inside ? image + ((at.sample * down.image + row) * across.image + column) * channels : zeros;
      }
      Number* into[PLACES];
      for (int64_t place = 0; place < PLACES; place++)
        into[place] = to + shifts[place] + number * depths[place];
      for (int64_t channel = 0; channel < channels; channel += LANES) {
        for (int64_t place : {10, 11, 14, 15}) // what the tile before did not have
          __builtin_prefetch(from[place] + AHEAD * channels + channel);
        Vec mixed[TILE][TILE];
#pragma GCC unroll 4
        for (int64_t i = 0; i < TILE; i++) {
          const Vec one = load(from[i] + channel), two = load(from[TILE + i] + channel),
                    three = load(from[2 * TILE + i] + channel), four = load(from[3 * TILE + i] + channel);
          mixed[0][i] = one - three, mixed[1][i] = two + three, mixed[2][i] = three - two, mixed[3][i] = two - four;
        }
#pragma GCC unroll 4
        for (int64_t i = 0; i < TILE; i++) {
          if (i + 1 == TILE && !is_high)
            break;
          const Vec* row = mixed[i];
          store(row[0] - row[2], into[i * TILE] + channel);
          store(row[1] + row[2], into[i * TILE + 1] + channel);
          store(row[2] - row[1], into[i * TILE + 2] + channel);
          if (is_wide)
            store(row[1] - row[3], into[i * TILE + 3] + channel);
        }
      }
    }
  }

  void finish(Vec found, int64_t place) const {
    if (other)
      found = found + load(other + place);
    if (is_rectified)
      found = at::vec::clamp_min(found, Vec(0.f));
    store(found, result + place);
  }

  // Pixels of the result, of the channels that begin with `channel`, from the products at each place.
  HAPI_HOT void gather(int64_t first, int64_t count, int64_t channel, int64_t width, const float* products) const {
    const int64_t each = block * PANEL + SHIFT;
    for (int64_t number = 0; number < count; number++) {
      const Tile at = tile(first + number);
      const bool is_right = at.column + 1 < across.result, is_below = at.row + 1 < down.result;
      const int64_t line = across.result * outs;
      const int64_t place = (at.sample * down.result + at.row) * line + at.column * outs + channel;
      for (int64_t i = 0; i < width; i += LANES) {
        const float* from = products + number * PANEL + i;
        Vec above[TILE], below[TILE];
#pragma GCC unroll 4
        for (int64_t j = 0; j < TILE; j++, from += each) {
          const Vec one = load(from), two = load(from + TILE * each), three = load(from + 2 * TILE * each),
                    four = load(from + 3 * TILE * each);
          above[j] = one + two + three, below[j] = two - three - four;
        }
        const Vec shift = load(bias + channel + i);
        finish(above[0] + above[1] + above[2] + shift, place + i);
        if (is_right)
          finish(above[1] - above[2] - above[3] + shift, place + i + outs);
        if (is_below) {
          finish(below[0] + below[1] + below[2] + shift, place + i + line);
          if (is_right)
            finish(below[1] - below[2] - below[3] + shift, place + i + line + outs);
        }
      }
    }
  }

  // The tiles of one block, channels of the result from one panel up to another.
  void run(int64_t first, int64_t panel, int64_t last, const Number* zeros, Number* tiled, float* products) const {
    const int64_t count = std::min(block, tiles - first), rows = rounded_up(count, ROWS);
    for (int64_t i = 0; i < down.all; i++)
      for (int64_t j = 0; j < across.all; j++)
        spread(first, count, i, j, zeros, tiled);
    for (int64_t place = 0; place < PLACES; place++)
      std::fill_n(tiled + spots[place] + count * depths[place], (rows - count) * depths[place], Number(0.f));
    for (; panel < last; panel++) {
      const int64_t channel = panel * PANEL, width = std::min(PANEL, outs - channel);
      for (int64_t place = 0; place < PLACES; place++)
        at::native::cpublas::brgemm(
            rows, width, depths[place], depths[place], PANEL, PANEL, false, tiled + spots[place],
            weight + panel * panel_numbers + starts[place], products + place * (block * PANEL + SHIFT), !IS_EXACT);
      gather(first, count, channel, width, products);
    }
  }

  // Whether it was done.
  bool run() const {
    const int64_t panels = parts(outs, PANEL), blocks = parts(tiles, block);
    // Where there are fewer blocks than threads, several compute one, each other channels.
    const int64_t groups = std::min(panels, parts(HAPI_THREADS, blocks));
    std::atomic<bool> is_done{true}; // an exception must not leave a parallel region
#pragma omp parallel num_threads(HAPI_THREADS)
    try {
      const std::vector<Number> zeros(channels, Number(0.f));
      const Room<Number> tiled(spread_numbers);
      const Room<float> products(PLACES * (block * PANEL + SHIFT));
#pragma omp for collapse(2) nowait
      for (int64_t number = 0; number < blocks; number++)
        for (int64_t group = 0; group < groups; group++)
          run(number * block, group * panels / groups, (group + 1) * panels / groups, zeros.data(), tiled, products);
      at::native::cpublas::brgemm_release(!IS_EXACT);
    } catch (...) {
      is_done = false;
    }
    return is_done;
  }
};

template <typename Number>
bool convolve(
    AtenTensorHandle image, AtenTensorHandle weight, AtenTensorHandle bias, AtenTensorHandle* other, int64_t outs,
    Side down, Side across, bool is_rectified, int32_t dtype, AtenTensorHandle* result) {
  const Tensor<const Number> from(image);
  const int64_t batch = from.sizes[0], height = down.result, width = across.result;
  const Tensor<Number> to(
      result, {batch, outs, height, width}, {height * width * outs, 1, width * outs, outs}, dtype);
  void *packed, *shift, *added = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(weight, &packed));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(bias, &shift));
  if (other)
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(*other, &added));
  Convolution<Number> convolution{
      from.data, static_cast<const Number*>(packed), static_cast<const Number*>(added),
      static_cast<const float*>(shift), to.data, is_rectified, batch, from.sizes[1], outs, down, across};
  convolution.lay_out();
  return convolution.run();
}

} // namespace hapi

extern "C" inline AOTITorchError aoti_torch_cpu_winograd_convolution(
    AtenTensorHandle image, AtenTensorHandle weight, AtenTensorHandle bias, AtenTensorHandle* other, int64_t outs,
    int64_t kernel_height, int64_t kernel_width, int64_t padding_height, int64_t padding_width, int32_t is_rectified,
    AtenTensorHandle* result) {
  try {
    const hapi::Tensor<const void> from(image);
    const hapi::Side down(from.sizes[2], kernel_height, padding_height);
    const hapi::Side across(from.sizes[3], kernel_width, padding_width);
    const int32_t dtype = hapi::dtype_of(image);
    const auto convolve =
        dtype == aoti_torch_dtype_bfloat16() ? hapi::convolve<at::BFloat16> : hapi::convolve<float>;
    return convolve(image, weight, bias, other, outs, down, across, is_rectified, dtype, result) ? AOTI_TORCH_SUCCESS
                                                                                                 : AOTI_TORCH_FAILURE;
  } catch (...) {
    return AOTI_TORCH_FAILURE;
  }
}
