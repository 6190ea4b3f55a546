-- Users that shared devices or addresses connect, one row per cluster; account_links has the users.
with

links as (

    select * from {{ ref('account_links') }}

),

clusters as (

    select
        cluster_id,
        count(distinct user_id) as users,
        count(distinct masked_device_id) as devices,
        count(distinct masked_ip) as ips,
        min(first_seen_at) as first_seen_at,
        max(last_seen_at) as last_seen_at
    from links
    group by cluster_id

)

select * from clusters
