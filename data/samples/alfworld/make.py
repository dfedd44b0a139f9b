"""How the sample games were made: ``python data/samples/alfworld/make.py`` writes them anew, the same every time.

Each is a small household of our own. ALFWorld's generator words the task; its rules of the world and its wording of
what happens (alfred.pddl, alfred.twl2; MIT licence) are part of every game file. The walkthrough is the planner's.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import alfworld.info
from alfworld.agents.utils.misc import add_task_to_grammar

from memskill_cli.envs.alfworld.textworld_env import Engine

HERE = Path(__file__).parent
CLEAN, HEAT, COOL = "pick_clean_then_place_in_recep", "pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep"
PLACE, TWO, LAMP = "pick_and_place_simple", "pick_two_obj_and_place", "look_at_obj_in_light"

CLOSED = {"Cabinet", "Drawer", "Fridge", "Microwave", "Safe"}
FIXED = {"DeskLamp"}
WASHABLE = {"Bowl", "Cloth", "Fork", "Knife", "Lettuce", "Mug", "Pan", "Plate", "SoapBar", "Spoon"}
WASHABLE |= {"Apple", "Cup", "Potato", "Tomato"}
HEATABLE = {"Apple", "Bread", "Cup", "Egg", "Mug", "Plate", "Potato", "Tomato"}
COOLABLE = {"Apple", "Bowl", "Bread", "Cup", "Egg", "Lettuce", "Mug", "Pan", "Plate", "Potato", "Tomato", "WineBottle"}


class Home(NamedTuple):
    """One game: what is wanted of which object, and what lies where."""

    split: str
    task: str
    thing: str
    goal: str  # the receptacle it goes to, or the lamp it is looked at with
    room: dict[str, str]


GALLEY = {"CounterTop": "Bread SaltShaker", "SinkBasin": "DishSponge", "StoveBurner": "Pan"}
FARMHOUSE = {"DiningTable": "Plate Fork", "SinkBasin": "", "GarbageCan": "Egg"}
STUDY = {"Bed": "Pillow", "GarbageCan": "", "Drawer 1": "CreditCard"}
GAMES = [
    Home("train", CLEAN, "Mug", "Shelf", GALLEY | {"Cabinet 1": "Plate", "Cabinet 2": "Mug", "Shelf": "Vase"}),
    Home("train", CLEAN, "Fork", "Drawer", FARMHOUSE | {"CounterTop": "Spoon", "Drawer": "Knife"}),
    Home("train", HEAT, "Potato", "DiningTable", GALLEY | {"Microwave": "", "Fridge": "Potato", "DiningTable": "Cup"}),
    Home("train", HEAT, "Egg", "CounterTop", FARMHOUSE | {"Microwave": "Plate", "CounterTop": "Knife"}),
    Home("train", COOL, "Tomato", "CounterTop", GALLEY | {"Fridge": "Egg", "Drawer": "Spoon", "Cabinet": "Tomato"}),
    Home("train", COOL, "Pan", "DiningTable", FARMHOUSE | {"Fridge": "Lettuce", "StoveBurner": "Pan"}),
    Home("train", PLACE, "Book", "Sofa", {"Sofa": "", "Shelf 1": "Vase", "Shelf 2": "Book", "CoffeeTable": "Laptop"}),
    Home("train", PLACE, "KeyChain", "Safe", STUDY | {"Desk": "KeyChain Pencil", "Safe": "Watch"}),
    Home("train", TWO, "Pillow", "ArmChair", {"Sofa": "Pillow", "ArmChair": "", "Bed": "Pillow Book"}),
    Home("train", TWO, "SoapBar", "Cabinet", {"SinkBasin": "SoapBar", "Shelf": "SoapBar Candle", "Cabinet": "Cloth"}),
    Home("train", LAMP, "Pencil", "DeskLamp", STUDY | {"Desk": "DeskLamp Mug", "Shelf": "Pencil"}),
    Home("train", LAMP, "Watch", "DeskLamp", STUDY | {"SideTable": "DeskLamp", "Drawer 2": "Watch", "Desk": "Book"}),
    Home("valid_seen", CLEAN, "Plate", "CounterTop", GALLEY | {"Cabinet 1": "Cup", "Cabinet 2": "Plate"}),
    Home("valid_seen", HEAT, "Mug", "Shelf", FARMHOUSE | {"Microwave": "", "Cabinet": "Mug", "Shelf": "Candle"}),
    Home("valid_seen", COOL, "Lettuce", "DiningTable", GALLEY | {"Fridge": "", "Drawer": "Lettuce", "DiningTable": ""}),
    Home("valid_seen", PLACE, "Vase", "SideTable", {"Shelf": "Vase Book", "SideTable": "", "Drawer": "Pen"}),
    Home("valid_seen", TWO, "Pen", "Drawer", STUDY | {"Desk": "Pen Book", "SideTable": "Pen"}),
    Home("valid_seen", LAMP, "CreditCard", "DeskLamp", STUDY | {"Desk": "DeskLamp Laptop", "Shelf": "Pencil"}),
]


def main() -> None:
    rules = Path(alfworld.info.ALFRED_PDDL_PATH).read_text("utf-8")
    lines = (line.partition(";")[0].rstrip() for line in rules.splitlines())
    domain = "\n".join(line for line in lines if line)
    wording = Path(alfworld.info.ALFRED_TWL2_PATH).read_text("utf-8")
    engine = Engine()
    for number, home in enumerate(GAMES, 1):
        lamp = home.task == LAMP
        pair = f"None-{home.goal}"
        folder = HERE / home.split / f"{home.task}-{home.thing}-{pair}-{number}" / "trial_1"
        folder.mkdir(parents=True, exist_ok=True)
        params = {
            "object_target": home.thing,
            "parent_target": "" if lamp else home.goal,
            "toggle_target": home.goal if lamp else "",
            "mrecep_target": "",
            "object_sliced": False,
        }
        traj = {"task_id": f"sample_{number}", "task_type": home.task, "pddl_params": params}
        random.seed(number)  # of two wordings of each task
        game = {
            "pddl_domain": domain,
            "grammar": add_task_to_grammar(wording, traj),
            "pddl_problem": problem(home, number),
            "solvable": None,
            "walkthrough": None,
        }
        file = folder / "game.tw-pddl"
        file.write_text(json.dumps(game), "utf-8")
        engine.start(file)
        game["walkthrough"] = engine.plan()
        game["solvable"] = bool(game["walkthrough"])
        file.write_text(json.dumps(game) + "\n", "utf-8")
        (folder / "traj_data.json").write_text(json.dumps(traj, indent=1) + "\n", "utf-8")
        print(folder.relative_to(HERE), game["walkthrough"])


def problem(home: Home, number: int) -> str:
    """The household in PDDL: objects, facts, goal."""
    declared, facts, types = ["agent1 - agent", "loc_0 - location"], ["(atLocation agent1 loc_0)"], set()
    counts: dict[str, int] = {}
    for place, (receptacle, things) in enumerate(home.room.items(), 1):
        kind = receptacle.split()[0]
        spot = f"{kind}_bar_{place}" if kind != "SinkBasin" else f"Sink_bar_{place}_bar_SinkBasin"
        declared += [f"{spot} - receptacle", f"loc_{place} - location"]
        types |= {f"{kind}Type - rtype"}
        facts += [f"(receptacleType {spot} {kind}Type)", f"(receptacleAtLocation {spot} loc_{place})"]
        facts += [f"(openable {spot})"] if kind in CLOSED else []
        for thing in things.split():
            counts[thing] = counts.get(thing, 0) + 1
            name = f"{thing}_bar_{counts[thing]}"
            declared.append(f"{name} - object")
            types.add(f"{thing}Type - otype")
            facts += [f"(objectType {name} {thing}Type)", f"(inReceptacle {name} {spot})"]
            facts += [f"(objectAtLocation {name} loc_{place})", *properties(thing, name)]
    rtypes = sorted({receptacle.split()[0] for receptacle in home.room})
    types |= {f"{kind}Type - rtype" for kind in ("Sink", "SinkBasin", "Microwave", "Fridge")}  # named by the rules
    types |= {"KnifeType - otype", "ButterKnifeType - otype"}
    facts += [f"(canContain {kind}Type {thing}Type)" for kind in rtypes for thing in sorted(counts)]
    objects = "\n".join([*declared, *sorted(types)])
    init = "\n".join(facts)
    return (
        f"(define (problem sample_{number})\n(:domain alfred)\n"
        f"(:objects\n{objects})\n(:init\n{init})\n(:goal {goal(home)}))\n"
    )


def properties(thing: str, name: str) -> list[str]:
    found = [] if thing in FIXED else [f"(pickupable {name})"]
    found += [f"(toggleable {name})"] if thing in FIXED else []
    found += [f"(cleanable {name})"] if thing in WASHABLE else []
    found += [f"(heatable {name})"] if thing in HEATABLE else []
    return found + ([f"(coolable {name})"] if thing in COOLABLE else [])


def goal(home: Home) -> str:
    """When the task is done."""
    if home.task == LAMP:
        lit = (
            f"(exists (?t - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?t {home.goal}Type) "
            "(isToggled ?t) (inReceptacle ?t ?r) (receptacleAtLocation ?r ?l) (atLocation ?a ?l)))"
        )
        return f"(and {lit} (exists (?o - object ?a - agent) (and (objectType ?o {home.thing}Type) (holds ?a ?o))))"
    there = f"(objectType ?o {home.thing}Type) (inReceptacle ?o ?r)"
    state = {CLEAN: "(isClean ?o)", HEAT: "(isHot ?o)", COOL: "(isCool ?o)"}.get(home.task, "")
    if home.task == TWO:
        again = there.replace("?o", "?p")
        state = f"(exists (?p - object) (and (not (= ?o ?p)) {again}))"
    where = f"(receptacleType ?r {home.goal}Type)"
    return f"(exists (?r - receptacle) (exists (?o - object) (and {where} {there} {state})))"


if __name__ == "__main__":
    main()
