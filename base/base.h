/* Floor 1: what everything stands on. This is its door: other floors include only this. */
#ifndef GQAKIT_BASE_BASE_H
#define GQAKIT_BASE_BASE_H

#include "arena.h"
#include "cli.h"
#include "config.h"
#include "error.h"
#include "hash.h"
#include "host.h"
#include "interrupt.h"
#include "io.h"
#include "json.h"
#include "kinds.h"
#include "log.h"
#include "random.h"
#include "view.h"

#endif
