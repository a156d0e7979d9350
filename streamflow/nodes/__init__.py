"""What a node is as data: its declaration, and what declarations are made of."""

from streamflow.nodes.declarations import Buffer as Buffer
from streamflow.nodes.declarations import Declaration as Declaration
from streamflow.nodes.declarations import Node as Node
from streamflow.nodes.declarations import Operator as Operator
from streamflow.nodes.declarations import Overflow as Overflow
from streamflow.nodes.declarations import Receiver as Receiver
from streamflow.nodes.declarations import Sink as Sink
from streamflow.nodes.declarations import Source as Source
from streamflow.nodes.declarations import Surroundings as Surroundings
from streamflow.nodes.declarations import node_of as node_of
