// All kernels as one unit: most of a compiler's time goes into the headers of the library.
#include "attention.cpp"
#include "delta_rule.cpp"
#include "experts.cpp"
#include "product.cpp"
