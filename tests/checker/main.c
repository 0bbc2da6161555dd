/* checker [--isa NAME] [--count N] [--seed S] [--replay SEED] [--plants] [--unsound NAME] [--scratch]
 *
 * Draws N different problems for each instruction set that this CPU can run and that was compiled (or for NAME), and
 * computes each by every algorithm that accepts it, with all buffers at the end and at the start of their pages. Each
 * failure prints the seed that --replay takes. --plants looks for the planted bugs instead, --unsound plants
 * one that only a sanitizer can see. --scratch asks N problems of all sizes for their scratch memory alone. */
#include <stdlib.h>
#include <string.h>

#include "checker.h"

#ifndef CHECKER_FUZZ /* which has its own main */
/* A set of hashes, so that no problem counts twice. */
static int seen_before(uint64_t *set, uint64_t mask, uint64_t hash) {
    uint64_t at = hash & mask;
    for (; set[at] != 0; at = (at + 1) & mask)
        if (set[at] == hash) return 1;
    set[at] = hash;
    return 0;
}

/* Floats get most of the problems: integers have fewer algorithms. */
static void walk_isa(walk *w, uint64_t seed, int64_t count) {
    static const storage turns[] = {F32, F32, F64, F32, F32, F64, I32, F32, F32, F64, I64};
    const conv_table *tables[DTYPE_COUNT];
    for (int d = 0; d < DTYPE_COUNT; d++) tables[d] = find_table(w->isa, DTYPES[d]);
    uint64_t mask = 1024;
    while (mask < 2 * (uint64_t)count) mask *= 2;
    uint64_t *set = calloc(mask, sizeof *set);
    mask--;
    for (int64_t i = 0; w->problems < count && w->failures < MOST_FAILURES; i++) {
        test_case t;
        const storage native = turns[i % (int64_t)(sizeof turns / sizeof turns[0])];
        draw_case(&t, random_bits(&seed), native);
        if (!seen_before(set, mask, case_hash(&t))) run_case(w, &t, tables[native]);
    }
    free(set);
}

static int summarize(const walk *w) {
    int missing = 0;
    printf("%s: %ld different problems, %ld runs, %ld failures\n", w->isa, (long)w->problems, (long)w->runs,
           (long)w->failures);
    for (int d = 0; d < DTYPE_COUNT; d++) {
        const conv_table *table = find_table(w->isa, DTYPES[d]);
        printf("  %s:", DTYPES[d]);
        for (size_t a = 0; a < table->count; a++) {
            printf(" %s %ld", table->algos[a]->name, (long)w->ran[d][a]);
            missing += w->ran[d][a] == 0 && table->vector_bytes >= 4 * (int)storage_bytes((storage)d);
        }
        printf("\n");
    }
    if (missing) printf("NOT REACHED: %d algorithms of %s accepted none of the problems\n", missing, w->isa);
    fflush(stdout);
    return w->failures != 0 || (missing && w->problems >= 5000);
}

/* Each planted bug must be found, and the same problems without it must pass. */
static int look_for_plants(const char *isa, uint64_t seed) {
    int missed = 0;
    for (size_t i = 0; i <= PLANT_COUNT; i++) {
        walk w = {.isa = isa, .planted = i < PLANT_COUNT ? &PLANTS[i] : NULL, .quiet = 1};
        walk_isa(&w, seed, 50);
        const int blind = i < PLANT_COUNT && strncmp(PLANTS[i].name, "upper", 5) == 0 && !upper_halves_can_be_seen();
        const int right = i < PLANT_COUNT ? w.failures > 0 : w.failures == 0;
        printf("%s, %s: %s\n", isa, i < PLANT_COUNT ? PLANTS[i].name : "nothing planted",
               blind   ? "cannot be seen here"
               : right ? "as it must be"
                       : "WRONG");
        missed += !blind && !right;
    }
    return missed;
}

static int replay(const char *isa, const char *text) {
    char dtype[4] = {0};
    memcpy(dtype, text, 3);
    walk w = {.isa = isa};
    test_case t;
    draw_case(&t, strtoull(text + 4, NULL, 16), storage_named(dtype));
    print_case(&t, stdout);
    run_case(&w, &t, find_table(isa, dtype));
    printf("%ld runs, %ld failures\n", (long)w.runs, (long)w.failures);
    return w.failures != 0;
}

/* For a sanitizer, which ends the program: 50 problems with one of UNSOUND, which this program itself cannot see. */
static int run_unsound(const char *isa, const char *name) {
    for (size_t i = 0; i < UNSOUND_COUNT; i++) {
        walk w = {.isa = isa, .planted = &UNSOUND[i], .quiet = 1};
        if (strcmp(UNSOUND[i].name, name) == 0) walk_isa(&w, 1, 50);
    }
    printf("%s, %s: no sanitizer ended the program\n", isa, name);
    return 0;
}

int main(int argc, char **argv) {
    const char *only = NULL, *replayed = NULL, *unsound = NULL;
    uint64_t seed = 1;
    int64_t count = 2000;
    int plants = 0, scratch = 0, status = 0, isas = 0;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--plants") == 0)
            plants = 1;
        else if (strcmp(argv[i], "--scratch") == 0)
            scratch = 1;
        else if (strcmp(argv[i], "--isa") == 0)
            only = value, i++;
        else if (strcmp(argv[i], "--count") == 0)
            count = atoll(value), i++;
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(value, NULL, 0), i++;
        else if (strcmp(argv[i], "--replay") == 0)
            replayed = value, i++;
        else if (strcmp(argv[i], "--unsound") == 0)
            unsound = value, i++;
        else
            return fprintf(stderr, "checker: unknown argument %s\n", argv[i]), 2;
    }
    const conv_table *table;
    for (size_t i = 0; (table = conv_table_at(i, "f32")) != NULL; i++) {
        walk w = {.isa = table->isa};
        if (only && strcmp(only, table->isa) != 0) continue;
        isas++;
        if (scratch)
            status |= look_at_scratch(table->isa, seed, count) != 0;
        else if (replayed)
            status |= replay(table->isa, replayed);
        else if (unsound)
            status |= run_unsound(table->isa, unsound);
        else if (plants)
            status |= look_for_plants(table->isa, seed) != 0;
        else
            walk_isa(&w, seed, count), status |= summarize(&w);
    }
    if (isas == 0) printf("checker: this CPU cannot run %s, or it was not compiled\n", only);
    return isas == 0 ? 2 : status;
}
#endif
