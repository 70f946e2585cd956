"""Counts the solutions of a Sudoku with a SAT solver: nothing of the lab's own solver in it."""

from itertools import combinations, product

from pysat.solvers import Cadical153

BOX_SHAPES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


def sat_solutions(side: int, digits: list[int], limit: int = 2) -> list[list[int]]:
    """Up to `limit` solutions of a puzzle with 0 for blanks."""

    def literal(cell: int, digit: int) -> int:
        return cell * side + digit

    h, w = BOX_SHAPES[side]
    units = [[r * side + c for c in range(side)] for r in range(side)]
    units += [[r * side + c for r in range(side)] for c in range(side)]
    units += [
        [(top + r) * side + left + c for r in range(h) for c in range(w)]
        for top, left in product(range(0, side, h), range(0, side, w))
    ]
    cells, values = range(side * side), range(1, side + 1)
    with Cadical153() as solver:
        for cell in cells:
            solver.add_clause([literal(cell, d) for d in values])
            for a, b in combinations(values, 2):
                solver.add_clause([-literal(cell, a), -literal(cell, b)])
        for unit, d in product(units, values):
            for a, b in combinations(unit, 2):
                solver.add_clause([-literal(a, d), -literal(b, d)])
        for cell, digit in enumerate(digits):
            if digit:
                solver.add_clause([literal(cell, digit)])
        found = []
        while len(found) < limit and solver.solve():
            true = {v for v in solver.get_model() if v > 0}
            found.append([next(d for d in values if literal(c, d) in true) for c in cells])
            solver.add_clause([-literal(c, d) for c, d in enumerate(found[-1])])
        return found
