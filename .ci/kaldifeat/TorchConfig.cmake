# Stands in for torch's own TorchConfig.cmake, which insists on the CUDA toolkit that its wheel was built with.
# kaldifeat's cmake/torch.cmake has set TORCH_DIR, the folder of the Python package, before it looks for Torch.
set(TORCH_FOUND TRUE)
set(TORCH_INCLUDE_DIRS "${TORCH_DIR}/include" "${TORCH_DIR}/include/torch/csrc/api/include")
set(TORCH_LIBRARIES "${TORCH_DIR}/lib/libtorch_cpu.so" "${TORCH_DIR}/lib/libc10.so")
execute_process(
  COMMAND "${PYTHON_EXECUTABLE}" -c "import torch; print(int(torch._C._GLIBCXX_USE_CXX11_ABI))"
  OUTPUT_STRIP_TRAILING_WHITESPACE
  OUTPUT_VARIABLE torch_cxx11_abi
)
set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi}")
include_directories(SYSTEM ${TORCH_INCLUDE_DIRS})
