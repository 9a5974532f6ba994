"""The tasks that come with Longview, each in a file of its own with its scripted expert.

Importing this package registers the tasks with gymnasium. Either line makes a simulator:

    import longview.actors.tasks; gymnasium.make("longview/ReturnPoint-v0")
    gymnasium.make("longview.actors.tasks:longview/ReturnPoint-v0")
"""

from gymnasium import register

register("longview/CountScoops-v0", entry_point="longview.actors.tasks.count_scoops:make")
register("longview/Counting-v0", entry_point="longview.actors.tasks.counting:make")
register("longview/GraspAndReturn-v0", entry_point="longview.actors.tasks.grasp_and_return:make")
register("longview/Lift-v0", entry_point="longview.actors.tasks.lift:make")
register("longview/PushAndReturn-v0", entry_point="longview.actors.tasks.push_and_return:make")
register("longview/PushT-v0", entry_point="longview.actors.tasks.push_t:make")
register("longview/ReturnPoint-v0", entry_point="longview.actors.tasks.return_point:make")
register("longview/SlidePuck-v0", entry_point="longview.actors.tasks.slide_puck:make")
register("longview/Square-v0", entry_point="longview.actors.tasks.square:make")
