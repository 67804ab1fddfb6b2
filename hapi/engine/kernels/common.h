// What the kernels of compiled programs share. Each is included by the code that PyTorch's compiler writes, after this
// file, see shims.py; HAPI_THREADS is defined there.
//
// Products of matrices are oneDNN's, through at::native::cpublas::brgemm: in float32 the library that PyTorch itself
// calls for them is MKL, which uses no AVX-512 on processors of other makers.

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

// This is compiled with the wrapper, which the compiler does not optimize: it is long, and runs once.
#if defined(__GNUC__) && !defined(__clang__)
#define HAPI_HOT __attribute__((flatten, optimize("O3")))
#else
#define HAPI_HOT __attribute__((flatten))
#endif

namespace hapi {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t LANES = Vec::size();

inline int64_t parts(int64_t count, int64_t step) {
  return (count + step - 1) / step;
}

inline int64_t rounded_up(int64_t count, int64_t step) {
  return parts(count, step) * step;
}

// A tensor of four dimensions.
template <typename Number>
struct Tensor {
  Number* data;
  int64_t sizes[4], strides[4];

  explicit Tensor(AtenTensorHandle tensor) {
    void* pointer;
    int64_t *size, *stride;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &pointer));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &size));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &stride));
    data = static_cast<Number*>(pointer);
    std::copy_n(size, 4, sizes);
    std::copy_n(stride, 4, strides);
  }

  // A new one, written to `handle`.
  Tensor(AtenTensorHandle* handle, const int64_t (&sizes)[4], const int64_t (&strides)[4], int32_t dtype)
      : Tensor(made(handle, sizes, strides, dtype)) {}

 private:
  static AtenTensorHandle made(
      AtenTensorHandle* handle, const int64_t (&sizes)[4], const int64_t (&strides)[4], int32_t dtype) {
    AOTI_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(4, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, handle));
    return *handle;
  }
};

inline int32_t dtype_of(AtenTensorHandle tensor) {
  int32_t dtype;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  return dtype;
}

} // namespace hapi
