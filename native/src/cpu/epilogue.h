// What is done to one row of a product.
#pragma once

#include <cstdint>

namespace pnb::cpu {

// row[j] += sum over r of h[r] * b[r][j], rows of b [rank, columns] b_row apart
void add_low_rank(float* row, const float* h, const float* b, int64_t rank, int64_t b_row, int64_t columns);

void add_row(float* row, const float* other, int64_t columns);
void add_bf16_row(float* row, const uint16_t* other, int64_t columns);

// max(0, row[j]), where NaN stays NaN; bf16 values are bit patterns.
void relu_row(float* row, int64_t columns);
void relu_bf16_row(uint16_t* row, int64_t columns);

// Bit (j mod 8) of mask byte j / 8 = row[j] > 0; bits past the last column are zero.
void mask_row(const float* row, uint8_t* mask, int64_t columns);
void mask_bf16_row(const uint16_t* row, uint8_t* mask, int64_t columns);

// row[j] = 0 where the mask's bit is not set.
void keep_row(float* row, const uint8_t* mask, int64_t columns);
void keep_bf16_row(uint16_t* row, const uint8_t* mask, int64_t columns);

}  // namespace pnb::cpu
