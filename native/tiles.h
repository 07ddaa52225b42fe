/* Tiles of a dense layer's results: tiles.c. */
#ifndef OCTAVO_TILES_H
#define OCTAVO_TILES_H

#include "windows.h"

octavo_tile octavo_dense_tile(void);

#endif
